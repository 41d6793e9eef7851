// A click on a column's head sorts its table; without this script the table is as it was written.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  // A cell's number stands in data-sort, or begins its text (".548 ± .022"); other words, such as n/a, come last.
  const number = (cell) => {
    if (cell.dataset.sort !== undefined) return cell.dataset.sort === "" ? null : Number(cell.dataset.sort);
    const found = cell.textContent.trim().match(/^[+\-]?(\d[\d,]*\.?\d*|\.\d+)(e[+\-]?\d+)?/);
    return found ? Number(found[0].replaceAll(",", "")) : null;
  };
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
      const numbers = rows.map((row) => number(row.cells[column]));
      const words = column === 0 || numbers.every((value) => value === null);
      const values = new Map(rows.map((row, i) => [row, words ? row.cells[column].textContent.trim() : numbers[i]]));
      const known = rows.filter((row) => values.get(row) !== null && values.get(row) !== "");
      const compare = (a, b) => words ? a.localeCompare(b, "en", {numeric: true}) : a - b;
      known.sort((a, b) => compare(values.get(a), values.get(b)) * (up ? 1 : -1));
      const rest = [...body.rows].filter((row) => !known.includes(row));
      body.append(...known, ...rest);
    });
  });
}
