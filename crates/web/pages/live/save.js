// Files of what is shown.

/** Hands a blob to the browser's downloads. */
export function save(blob, view, ending) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = `${fileName(view.name)}-${view.batch}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A view's name as part of a file's: letters, digits, dots, and nothing that a system takes for more. */
export const fileName = (name) => name.replace(/[^\p{L}\p{N}._-]+/gu, '_').replace(/^\.+/, '').slice(0, 60) || 'view';

/**
 * Rows as CSV (RFC 4180, with a byte order mark for spreadsheets). A text that a
 * spreadsheet would take for a formula gets an apostrophe before it.
 */
export function csv({ columns, rows }) {
  const cell = (value, type) => {
    if (value === null) return '';
    let text = String(value);
    if (type !== 'number' && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns.map((column) => cell(column.name)), ...rows.map((row) => row.map((value, i) => cell(value, columns[i].type)))];
  return new Blob(['\ufeff', lines.map((line) => line.join(',')).join('\r\n'), '\r\n'], { type: 'text/csv' });
}
