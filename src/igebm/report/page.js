// A strip of pictures becomes one picture with a slider and a button that plays them. Without this it scrolls sideways.
for (const film of document.querySelectorAll(".film")) {
  const frames = [...film.querySelectorAll("figure")];
  if (frames.length < 2) continue;
  const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: frames.length - 1 });
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Play" });
  const controls = document.createElement("div");
  controls.className = "controls";
  controls.append(button, slider);
  slider.setAttribute("aria-label", film.getAttribute("aria-label"));
  let timer = 0;
  const show = (i) => {
    frames.forEach((frame, k) => (frame.hidden = k !== i));
    slider.value = i;
    slider.setAttribute("aria-valuetext", frames[i].querySelector("figcaption").textContent);
  };
  const stop = () => { clearInterval(timer); timer = 0; button.textContent = "Play"; };
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  button.addEventListener("click", () => {
    if (timer) return stop();
    let i = Number(slider.value) === frames.length - 1 ? 0 : Number(slider.value);
    show(i);
    button.textContent = "Pause";
    timer = setInterval(() => { show(++i); if (i === frames.length - 1) stop(); }, 350);
  });
  film.classList.add("one");
  film.removeAttribute("tabindex");
  film.append(controls);
  show(frames.length - 1);
}
