// A comparison as one picture, to be shown elsewhere.

import { duration, percent, quality } from "./words.js";

const SIDE = 320; // of a picture, in pixels
const GAP = 24;
const HEAD = 88;
const FOOT = 96;

/** cards: each with its `image` and its `option`. Saves a PNG in the page's own colours. */
export function saveSheet(title, source, cards) {
  const canvas = document.createElement("canvas");
  const { naturalWidth, naturalHeight } = cards[0].image;
  const height = Math.round((SIDE * naturalHeight) / naturalWidth);
  canvas.width = GAP + cards.length * (SIDE + GAP);
  canvas.height = HEAD + height + FOOT;
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name);
  const write = (text, x, y, font, ink) => {
    Object.assign(pen, { font: `${font} ${style.fontFamily}`, fillStyle: colour(ink) });
    pen.fillText(text, x, y);
  };
  pen.fillStyle = colour("--bg");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  write(title, GAP, 40, "600 26px", "--ink");
  write(`${source}: the same weights on more and more of the latents`, GAP, 68, "16px", "--muted");
  for (const [index, { image, option }] of cards.entries()) {
    const x = GAP + index * (SIDE + GAP);
    pen.drawImage(image, x, HEAD, SIDE, height);
    write(percent(option.budget), x, HEAD + height + 34, "600 24px", "--ink");
    const facts = [`${duration(option.alone_ms)} alone`];
    if (option.quality !== null) facts.push(`quality ${quality(option.quality)}`);
    write(facts.join(", "), x, HEAD + height + 60, "17px", "--muted");
  }
  const link = document.createElement("a");
  Object.assign(link, { href: canvas.toDataURL("image/png"), download: `${title.replaceAll(/\W+/g, "-")}.png` });
  link.click();
}
