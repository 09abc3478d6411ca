"use strict";
const all = (selector) => [...document.querySelectorAll(selector)];
const fields = JSON.parse(document.getElementById("fields").textContent);
const fieldOf = fields.flatMap(([name, bits], f) => Array.from({length: bits}, (_, bit) => ({name, bits, bit, start: 0, f})));
fieldOf.forEach((column, at) => { column.start = at - column.bit; });

// theme: the system's, until somebody chooses
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement.style, chosen = root.colorScheme;
  root.colorScheme = (chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches) ? "light" : "dark";
});

// classes: one at a time
document.documentElement.classList.add("js");
const show = (n) => {
  all(".class").forEach((section, i) => { section.hidden = n > 0 && n !== i + 1; });
  all(".picker button").forEach((b) => b.setAttribute("aria-pressed", String(Number(b.dataset.class) === n)));
};
all(".picker").forEach((picker) => {
  picker.hidden = false;
  picker.addEventListener("click", (event) => { if (event.target.dataset.class) show(Number(event.target.dataset.class)); });
});
show(1);
all(".palette").forEach((box, _, boxes) => box.addEventListener("change", () => {
  document.body.classList.toggle("safe", box.checked);
  boxes.forEach((other) => { other.checked = box.checked; });
}));

// hover: the field, its value in this packet, the bit
const tip = document.getElementById("tip");
const pixels = new Map();
const bitsOf = (img) => {
  if (!pixels.has(img.src)) {
    const canvas = document.createElement("canvas");
    canvas.width = img.naturalWidth; canvas.height = img.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(img, 0, 0);
    const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
    pixels.set(img.src, Int8Array.from({length: rgba.length / 4}, (_, i) => rgba[4 * i] > 127 ? 1 : rgba[4 * i + 1] > 127 ? 0 : -1));
  }
  return pixels.get(img.src);
};
const say = (img, event) => {
  const box = img.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / box.width * img.naturalWidth);
  const row = Math.floor((event.clientY - box.top) / box.height * img.naturalHeight);
  const field = fieldOf[column];
  if (!field || row < 0 || row >= img.naturalHeight) { tip.hidden = true; return; }
  const line = bitsOf(img).subarray(row * img.naturalWidth, (row + 1) * img.naturalWidth);
  const value = line.subarray(field.start, field.start + field.bits);
  const whole = field.bits <= 64 && !value.includes(-1);
  const first = document.createElement("b");
  first.textContent = whole ? `${field.name} = ${BigInt("0b" + value.join(""))}` : field.name;
  tip.replaceChildren(first, `bit ${field.bit}: ${line[column] < 0 ? "absent" : line[column]}, packet ${row + 1}, column ${column}`);
  tip.hidden = false;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
};
for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, (event) => {
  if (event.target.matches(".strip img, .zoomed img")) say(event.target, event); else tip.hidden = true;
});

// select: the flow and its counterpart, eight pixels a bit, under the names of the fields
const zoom = document.getElementById("zoom");
const SCALE = 8;
const make = (tag, text, width, title = text) => {
  const element = document.createElement(tag);
  element.textContent = text;
  element.title = title;
  if (width) element.style.width = `${width}px`;
  return element;
};
all(".strip").forEach((strip) => strip.addEventListener("click", (event) => {
  const section = strip.closest(".class"), box = strip.getBoundingClientRect();
  const names = make("div", "", fieldOf.length * SCALE);
  names.append(...fields.map(([name, bits], f) => {
    const [header, rest] = name.split("."), again = f && fields[f - 1][0].startsWith(`${header}.`);
    return make("span", again ? rest : name, bits * SCALE, name);
  }));
  const body = zoom.querySelector(".zoomed");
  body.replaceChildren(names);
  section.querySelectorAll(`.strip[data-index="${strip.dataset.index}"]`).forEach((each) => {
    const img = each.querySelector("img"), large = img.cloneNode();
    large.style.width = `${img.naturalWidth * SCALE}px`;
    large.style.height = `${img.naturalHeight * SCALE}px`;
    body.append(make("h5", each.dataset.name), large);
  });
  zoom.querySelector("header span").textContent = section.querySelector("h3").textContent;
  zoom.append(tip);
  zoom.showModal();
  body.scrollLeft = (event.clientX - box.left) / box.width * fieldOf.length * SCALE - body.clientWidth / 2;
}));
zoom.querySelector("button").addEventListener("click", () => zoom.close());
zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
zoom.addEventListener("close", () => { tip.hidden = true; document.body.append(tip); });
