// The start page's live example: the network's page is loaded when somebody clicks a scene, which it then answers.
"use strict";

for (const button of document.querySelectorAll(".scenes button")) {
  button.onclick = () => {
    const place = document.querySelector("div.live");
    const address = `live/index.html#${encodeURIComponent(button.dataset.scene)}`;
    let frame = place.querySelector("iframe");
    if (frame === null) {
      frame = document.createElement("iframe");
      frame.title = "An early-exit network in this browser";
      place.append(frame);
      place.hidden = false;
    }
    frame.src = address;
  };
}
