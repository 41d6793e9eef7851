// A click on a column's head sorts its table; without this script the table is as it was written.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column], number = cell.dataset.sort;
    return number === undefined ? cell.textContent.trim() : number === "" ? null : Number(number);
  };
  const compare = (a, b) => typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // Numbers begin with the largest.
      const up = head.ariaSort ? head.ariaSort === "descending" : column === 0;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].filter((row) => !row.classList.contains("majority"));
      const known = rows.filter((row) => value(row, column) !== null);
      known.sort((a, b) => compare(value(a, column), value(b, column)) * (up ? 1 : -1));
      const rest = [...body.rows].filter((row) => !known.includes(row));
      body.append(...known, ...rest);
    });
  });
}
