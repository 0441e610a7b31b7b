// What the page shows stands in its address, so that the address can be sent to others; on the Hub in that of the frame's page.
// Until the page has shown what its address asked for, the address stays.
window.openLink = () => {
  window.isLinkOpen = true;
};
window.setLink = (changes) => {
  if (!window.isLinkOpen) return;
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") query.delete(name);
    else query.set(name, value);
  }
  const text = query.toString();
  history.replaceState(null, "", text ? `?${text}` : location.pathname);
  if (window.parent !== window) window.parent.postMessage({ queryString: text }, "https://huggingface.co");
};
window.copyLink = async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    return true;
  } catch {
    return false;  // no permission: the address bar has it
  }
};
