// Small helpers. Text only ever becomes text: nothing that a model or a shop wrote is read as HTML.
(() => {
  window.make = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };
  window.figure = (value) => {
    if (value === null || value === undefined) return "\u2013";
    const text = Math.abs(value).toFixed(2);
    return (value < 0 && Number(text) !== 0 ? "\u2212" : "") + text;
  };
  window.signed = (value) =>
    value === null || value === undefined ? "\u2013" : (value > 0 ? "+" : "") + window.figure(value);
  window.isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
  window.download = (name, data) => {
    const blob = new Blob([JSON.stringify(data, null, 1)], { type: "application/json" });
    const link = window.make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
})();

// A sentence about what the page was asked for: {text, kind}, kind "good", "bad" or "".
customElements.define("page-note", class extends HTMLElement {
  show(note) {
    if (!this.line) {
      this.line = window.make("p", { role: "status" });
      this.replaceChildren(this.line);
    }
    this.line.className = note && note.kind ? `is-${note.kind}` : "";
    this.line.textContent = note ? note.text : "";
  }
});
