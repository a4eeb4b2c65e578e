function openTarget(hash) {
  const target = hash && document.getElementById(decodeURIComponent(hash.slice(1)));
  if (!target) return;
  for (let box = target.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  target.scrollIntoView();
}

addEventListener("hashchange", () => openTarget(location.hash));
document.addEventListener("click", (event) => openTarget(event.target.closest("a[href^='#']")?.hash));
addEventListener("beforeprint", () => document.querySelectorAll("details.worst").forEach((row) => (row.open = true)));
openTarget(location.hash);
