// The brush, the example buttons and the opacity, by delegation: the page's parts are drawn anew at every answer.
(() => {
  const tell = (id, value) => {
    const field = document.querySelector(`#${id} textarea, #${id} input`);
    if (!field) return;
    const kind = field.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(field, value);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  let painting = null;
  let cursor = { x: 0.5, y: 0.5 };
  const radius = () => {
    const slider = document.querySelector("#xl-size input[type=number], #xl-size input");
    return slider ? Number(slider.value) / 100 : 0.08;
  };
  const dab = (canvas, x, y) => {
    const pen = canvas.getContext("2d");
    pen.fillStyle = "rgba(128,128,128,1)";
    pen.beginPath();
    pen.arc(x * canvas.width, y * canvas.height, radius() * canvas.width, 0, 2 * Math.PI);
    pen.fill();
  };
  const place = (canvas, event) => {
    const box = canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  };
  const send = (canvas) => tell("xl-strokes", canvas.toDataURL("image/png"));
  document.addEventListener("pointerdown", (event) => {
    if (event.target.id !== "xl-brush") return;
    painting = event.target;
    painting.setPointerCapture(event.pointerId);
    cursor = place(painting, event);
    dab(painting, cursor.x, cursor.y);
  });
  document.addEventListener("pointermove", (event) => {
    if (!painting) return;
    const next = place(painting, event);
    for (let step = 0; step <= 8; step++) {
      dab(painting, cursor.x + ((next.x - cursor.x) * step) / 8, cursor.y + ((next.y - cursor.y) * step) / 8);
    }
    cursor = next;
  });
  document.addEventListener("pointerup", () => {
    if (painting) send(painting);
    painting = null;
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.id !== "xl-brush") return;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (moves[event.key]) {
      cursor.x = Math.min(1, Math.max(0, cursor.x + 0.04 * moves[event.key][0]));
      cursor.y = Math.min(1, Math.max(0, cursor.y + 0.04 * moves[event.key][1]));
    } else if (event.key === " ") {
      dab(event.target, cursor.x, cursor.y);
      send(event.target);
    } else return;
    event.preventDefault();
  });
  const skip = () => document.querySelectorAll(".xl-hidden textarea, .xl-hidden input").forEach((e) => (e.tabIndex = -1));
  new MutationObserver(skip).observe(document, { childList: true, subtree: true }); // fields for the script, not for people
  // the page keeps the canvas when the picture under it changes, so what was painted goes here
  const clean = () => {
    const canvas = document.getElementById("xl-brush");
    if (canvas) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  };
  let shown = null;
  new MutationObserver(() => {
    const picture = document.querySelector(".xl-board img");
    if (picture && picture.src !== shown) {
      shown = picture.src;
      clean();
    }
  }).observe(document, { childList: true, subtree: true, attributes: true, attributeFilter: ["src"] });
  document.addEventListener("click", (event) => {
    if (event.target.closest && event.target.closest("#xl-clear")) clean();
    const enlarge = event.target.closest && event.target.closest(".xl-enlarge");
    if (enlarge) enlarge.closest(".xl-exit").classList.toggle("xl-large");
    const button = event.target.closest && event.target.closest("[data-example]");
    if (button) tell("xl-choice", button.dataset.example + ":" + Date.now());
  });
})();
