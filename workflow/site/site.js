// Tables that sort and filter, charts whose points lead to runs. Without it the pages still read.
const FEW = 100; // rows that stand on one page
const CHOICES = 30; // different values of a column from which one chooses

// A page that is opened from a disk may not load a module from a file, but from data.
const bundle = import("BUNDLE");

function columnsToChoose(table) {
  const rows = [...table.tBodies[0].rows];
  return [...table.tHead.rows[0].cells].flatMap((_, at) => {
    const texts = new Set(rows.map((row) => row.cells[at].textContent));
    const words = [...texts].every((text) => text === "" || /^[^\d±+-]/.test(text));
    return words && texts.size > 1 && texts.size <= CHOICES && texts.size < rows.length ? [at] : [];
  });
}

function addChoices(api, columns) {
  for (const at of columns) {
    const column = api.column(at);
    const select = document.createElement("select");
    select.setAttribute("aria-label", `only this ${column.header().textContent}`);
    select.add(new Option(`${column.header().textContent}: all`, ""));
    for (const text of [...new Set(column.data().map(textOf).toArray())].sort()) select.add(new Option(text || "(none)", text));
    select.onchange = () => {
      column.search((data) => select.selectedIndex === 0 || textOf(data) === select.value).draw();
    };
    api.table().container().querySelector(".choices").append(select);
  }
}

function textOf(cell) {
  return new DOMParser().parseFromString(cell.display ?? cell, "text/html").body.textContent;
}

document.querySelectorAll("table.sortable").forEach(async (table) => {
  const { default: DataTable } = await bundle;
  const rows = table.tBodies[0].rows.length;
  const columns = columnsToChoose(table);
  const box = Object.assign(document.createElement("div"), { className: "choices" });
  const api = new DataTable(table, {
    order: [],
    autoWidth: false,
    paging: rows > FEW,
    pageLength: 25,
    language: { search: "", searchPlaceholder: "filter", emptyTable: "nothing" },
    layout: { topStart: rows > 5 ? [() => box, "search"] : null, topEnd: null, bottomStart: rows > FEW ? "info" : null, bottomEnd: rows > FEW ? "paging" : null },
  });
  if (rows > 5) addChoices(api, columns);
  table.dataset.ready = "true";
});

document.querySelectorAll("figure.chart").forEach((figure) => {
  const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
  const place = figure.appendChild(document.createElement("div"));
  if (figure.clientWidth < 600) layout.height *= 1.4; // the legend has more lines there
  Plotly.newPlot(place, data, layout, { responsive: true, displaylogo: false });
  place.on("plotly_click", ({ points: [point] }) => {
    if (point.customdata) location.href = `${document.body.dataset.root}/${point.customdata}`;
  });
});
