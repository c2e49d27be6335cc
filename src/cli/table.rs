//! What commands print: tables with columns as wide as their words, and text for programs that may stop reading.

use std::io::{ErrorKind, Write};

/// Lines with two spaces at least between columns. Every row has as many words as the head.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let words = rows.iter().filter_map(|r| r.get(column)).map(|w| w.chars().count());
        words.chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |words: Vec<&str>| {
        let cells = words.iter().zip(&widths).map(|(word, width)| format!("{word:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let rows = rows.iter().map(|r| line(r.iter().map(String::as_str).collect()));
    [line(head.to_vec())].into_iter().chain(rows).collect()
}

/// Writes to standard output; a reader that has gone, such as `head`, has what it wants.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_words() {
        let rows = [vec!["long-name".to_owned(), "1".to_owned()], vec!["é".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "READY"], &rows), "NAME       READY\nlong-name  1\né\n");
    }
}
