// The value under the mouse or the finger, at once and beside it; without this script the browser shows it as a title.
{
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  for (const spot of document.querySelectorAll(".spot")) {
    const title = spot.querySelector("title");
    spot.dataset.tip = title.textContent;
    title.remove();
  }
  const show = (event) => {
    const text = event.target.dataset && event.target.dataset.tip;
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const box = event.target.getBoundingClientRect(), page = document.documentElement;
    const middle = box.left + box.width / 2 - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(4, Math.min(middle, page.clientWidth - tip.offsetWidth - 4)) + scrollX}px`;
    tip.style.top = `${(box.top > tip.offsetHeight + 8 ? box.top - tip.offsetHeight - 6 : box.bottom + 6) + scrollY}px`;
  };
  addEventListener("pointerover", show);
  addEventListener("pointerdown", show);
}
