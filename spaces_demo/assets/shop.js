// A page of the shop as data in, the page as a visitor sees it out. `action` marks what the agent does there.
(() => {
  const clicked = (action, name) => action === `click[${String(name).toLowerCase()}]`;

  const button = (name, action, kind = "") =>
    make("span", { class: `ws-button ${kind} ${clicked(action, name) ? "is-clicked" : ""}` }, name);

  const searchBar = (page, action) => {
    const words = (action || "").startsWith("search[") ? action.slice(7, -1).trim() : null;
    return make("div", { class: `ws-search ${words !== null ? "is-clicked" : ""}` },
      make("span", { class: "ws-glass", "aria-hidden": "true" }),
      make("span", { class: words === null && !page.query ? "ws-hint" : "" },
        words !== null ? words : page.query || "search the shop"));
  };

  const results = (page, action) => [
    make("p", { class: "ws-count" }, `${page.total} results, page ${page.page} of ${page.pages}`),
    make("ol", { class: "ws-results" }, ...page.products.map((product) =>
      make("li", { class: clicked(action, product.id) ? "is-clicked" : "" },
        make("span", { class: "ws-picture", "aria-hidden": "true" }, product.name.slice(0, 1)),
        make("span", { class: "ws-name" }, product.name),
        make("span", { class: "ws-price" }, product.price)))),
    make("div", { class: "ws-row" }, page.page > 1 ? button("< prev", action) : null,
      page.page < page.pages ? button("next >", action) : null, button("back to search", action)),
  ];

  const options = (product, action) => product.options.map((option) =>
    make("div", { class: "ws-option" }, make("span", { class: "ws-group" }, option.group),
      ...option.values.map((value) =>
        button(value, action, option.chosen === value ? "ws-chip is-chosen" : "ws-chip"))));

  const item = (page, action) => [
    make("div", { class: "ws-item" },
      make("span", { class: "ws-picture ws-large", "aria-hidden": "true" }, page.product.name.slice(0, 1)),
      make("div", {}, make("p", { class: "ws-title" }, page.product.name),
        make("p", { class: "ws-price" }, page.product.price), ...options(page.product, action))),
    make("div", { class: "ws-row" }, button("buy now", action, "ws-buy"),
      ...page.product.buttons.map((name) => button(name.toLowerCase(), action)), button("< prev", action)),
  ];

  const subPage = (page, action) => [
    make("p", { class: "ws-title" }, `${page.title} of ${page.product.name}`),
    ...(page.texts.length ? page.texts : ["(nothing)"]).map((text) => make("p", { class: "ws-text" }, text)),
    make("div", { class: "ws-row" }, button("< prev", action), button("back to search", action)),
  ];

  const receipt = (page) => [
    make("p", { class: "ws-title" }, "Bought"),
    make("p", {}, `${page.product.name}, ${page.product.price}`),
    make("p", { class: "ws-score" }, make("strong", {}, figure(page.score)), " of the wish is fulfilled"),
    make("ul", { class: "ws-terms" }, ...page.terms.map((term) =>
      make("li", {}, make("span", {}, term.name), make("span", {}, `${Math.round(term.share * 100)} %`)))),
  ];

  const PLACES = { search_results: results, item_page: item, item_sub_page: subPage, done: receipt };

  class ShopPage extends HTMLElement {
    show(page, action) {
      const body = PLACES[page.place] ? PLACES[page.place](page, action) : [];
      this.setAttribute("role", "group");
      this.setAttribute("aria-label", `Shop, ${page.place.replaceAll("_", " ")}`);
      this.replaceChildren(
        make("p", { class: "ws-wish" }, make("span", {}, "Wish"), page.wish),
        page.place === "done" ? "" : searchBar(page, action), ...body);
    }
  }
  customElements.define("shop-page", ShopPage);
})();
