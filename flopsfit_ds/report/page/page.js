"use strict";
// Saving figures and files, and the numbers of a training curve by pointer, finger or keyboard. The page is whole without it.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const save = (name, type, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  };
  const paper = read("colours");
  const png = (name, source, box) => {
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [3 * box.width, 3 * box.height];
      const context = canvas.getContext("2d");
      context.fillStyle = paper.paper;
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(`${name}.png`, "image/png", blob));
    };
    image.src = `data:image/svg+xml,${encodeURIComponent(source)}`;
  };
  for (const button of document.querySelectorAll("button[data-figure]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const name = button.dataset.figure;
      const drawn = document.querySelector(`#figure-${name} svg`).cloneNode(true);
      drawn.setAttribute("xmlns", drawn.namespaceURI);
      const box = drawn.viewBox.baseVal;
      drawn.setAttribute("width", box.width);
      drawn.setAttribute("height", box.height);
      const source = drawn.outerHTML.replace(/var\(--([\w-]+)\)/g, (whole, tone) => paper[tone] || whole);
      if (button.dataset.kind === "png") png(name, source, box);
      else save(`${name}.svg`, "image/svg+xml", source);
    });
  }
  const files = read("files");
  for (const button of document.querySelectorAll("button[data-file]")) {
    button.hidden = false;
    button.addEventListener("click", () => save(button.dataset.file, "text/plain", files[button.dataset.file]));
  }

  const held = document.getElementById("curve-data");
  if (!held) return;
  const { plane, runs } = JSON.parse(held.textContent);
  const figure = document.getElementById("figure-curves");
  const plot = figure.querySelector(".plot");
  const svg = plot.querySelector("svg");
  const told = document.getElementById("curve-told");
  const facts = document.getElementById("curve-facts");
  const choice = document.getElementById("curve-choice");
  for (const run of runs) {
    run.mark = document.getElementById(run.id);
    const numbers = run.mark.querySelector("path").getAttribute("d").match(/-?\d+(\.\d+)?/g).map(Number);
    run.at = [];
    for (let k = 0; k + 1 < numbers.length; k += 2) run.at.push([numbers[k], numbers[k + 1]]);
    run.mark.querySelector("title").remove(); // the browser's own tip would cover the numbers
  }
  const dot = document.createElementNS(svg.namespaceURI, "circle");
  dot.setAttribute("r", "4.5");
  dot.setAttribute("class", "dot");
  const share = (value, low, high) => (value - low) / (high - low);
  const along = (part, [low, high]) => low * (high / low) ** part;
  const count = (value) => {
    const units = ["", "k", "M", "B", "T"];
    const power = Math.max(0, Math.min(4, Math.floor(Math.log10(value) / 3)));
    return `${Number((value / 1000 ** power).toPrecision(3))}${units[power]}`;
  };
  let chosen = null;
  let place = 0;
  const show = (run, spot) => {
    for (const other of svg.querySelectorAll(".chosen")) other.classList.remove("chosen");
    svg.classList.toggle("choosing", run !== null);
    if (run === null) {
      dot.remove();
      told.textContent = told.dataset.rest;
      return;
    }
    run.mark.classList.add("chosen");
    const [x, y] = run.at[spot];
    dot.setAttribute("cx", x);
    dot.setAttribute("cy", y);
    svg.append(dot);
    const tokens = along(share(x, plane.left, plane.right), plane.x);
    const loss = along(share(y, plane.bottom, plane.top), plane.y);
    told.textContent = `${run.label}: loss ${loss.toFixed(3)} after ${count(tokens)} tokens`;
  };
  const pin = (run, spot) => {
    [chosen, place] = [run, spot];
    choice.value = run === null ? "" : run.id;
    facts.replaceChildren();
    for (const [name, value] of run === null ? [] : run.facts) {
      const [cell, term, text] = ["div", "dt", "dd"].map((kind) => document.createElement(kind));
      [term.textContent, text.textContent] = [name, value];
      cell.append(term, text);
      facts.append(cell);
    }
    show(run, spot);
  };
  const nearest = (event) => {
    const spot = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let best = [Infinity, null, 0];
    for (const run of runs) {
      run.at.forEach(([x, y], k) => {
        const far = (x - spot.x) ** 2 + (y - spot.y) ** 2;
        if (far < best[0]) best = [far, run, k];
      });
    }
    return best;
  };
  plot.addEventListener("pointermove", (event) => {
    const [far, run, spot] = nearest(event);
    if (far < 900) show(run, spot);
    else show(chosen, place);
  });
  plot.addEventListener("pointerleave", () => show(chosen, place));
  plot.addEventListener("click", (event) => {
    const [far, run, spot] = nearest(event);
    pin(far < 900 ? run : null, spot);
  });
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const turn = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key === "Escape") pin(null, 0);
    else if (turn !== undefined) {
      const next = chosen === null ? 0 : (runs.indexOf(chosen) + turn + runs.length) % runs.length;
      pin(runs[next], runs[next].at.length - 1);
    } else if (step !== undefined && chosen !== null) {
      pin(chosen, Math.max(0, Math.min(chosen.at.length - 1, place + step)));
    } else return;
    event.preventDefault();
  });
  choice.addEventListener("change", () => {
    const run = runs.find((each) => each.id === choice.value) || null;
    pin(run, run === null ? 0 : run.at.length - 1);
  });
  figure.querySelector(".chooser").hidden = false;
  show(null, 0);
})();
