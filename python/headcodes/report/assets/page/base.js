"use strict";
// Text from runs is data: it reaches the page as text nodes only, and plotly only through plain().
(() => {
  const parsed = new Map();
  const block = (id) => {
    if (!parsed.has(id)) {
      const element = document.getElementById(id);
      parsed.set(id, element ? JSON.parse(element.textContent) : null);
    }
    return parsed.get(id);
  };
  const nRuns = document.querySelectorAll("#runs tbody tr").length || 1;
  const label = (index) => (nRuns > 1 ? `${index + 1}: ` : "") + block(`run-${index}`).label;

  const make = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === undefined || value === null) continue;
      if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
      else if (name in element && !name.startsWith("aria")) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const foreign = (text, className) => make("bdi", { className }, String(text));

  const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const shown = (text) =>
    text.replace(INVISIBLE, (c) => (c === "\n" ? "⏎" : `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`));
  const plain = (text) => shown(text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"));
  const number = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
  };
  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  const KINDS = { f4: Float32Array, f8: Float64Array, i2: Int16Array, i4: Int32Array, u1: Uint8Array };
  const decode = (array) => {
    if (Array.isArray(array)) return array;
    const bytes = Uint8Array.from(atob(array.bdata), (c) => c.charCodeAt(0));
    return new KINDS[array.dtype](bytes.buffer);
  };

