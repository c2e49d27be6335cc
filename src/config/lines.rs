//! The lines of a settings file that is written one key a line: where each top-level key has its value.

/// A top-level key with the lines of its value, or lines between such.
pub(super) struct Block<'a> {
    /// The key as it is written, without quotes; `None`: a comment, or nothing.
    pub key: Option<&'a str>,
    /// Number of the first line, from 1.
    pub first: usize,
    /// All of them.
    pub lines: Vec<&'a str>,
}

fn key(line: &str) -> &str {
    line.split(':').next().unwrap_or_default().trim().trim_matches(['"', '\''])
}

/// The blocks of a text.
pub(super) fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let inner = line.starts_with([' ', '\t']) || line == "-" || line.starts_with("- ");
        let starts = !inner && !line.is_empty() && !line.starts_with(['#', '%']) && line != "---" && line != "...";
        match blocks.last_mut() {
            Some(block) if inner && block.key.is_some() => block.lines.push(line),
            _ => blocks.push(Block { key: starts.then(|| key(line)), first: at + 1, lines: vec![line] }),
        }
    }
    blocks
}

/// The line on which a key is, from 1.
pub(super) fn of(text: &str, name: &str) -> Option<usize> {
    blocks(text).iter().find(|block| block.key == Some(name)).map(|block| block.first)
}

/// The text with the lines of these keys empty.
pub(super) fn without(text: &str, names: &[String]) -> String {
    let mut left = String::with_capacity(text.len());
    for block in blocks(text) {
        let gone = block.key.is_some_and(|key| names.iter().any(|name| name == key));
        for line in block.lines {
            left.push_str(if gone { "" } else { line });
            left.push('\n');
        }
    }
    left
}
