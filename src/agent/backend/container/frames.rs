//! Pure: how engines frame what comes bit by bit: lines of JSON, and two outputs in one stream.

use std::collections::VecDeque;

/// Longest line of JSON, bytes.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
/// Before each part of a stream with two outputs: which one, three zeros, the length in network order.
const HEADER_BYTES: usize = 8;
/// Number of the last output there is: standard input, output, error.
const LAST_OUTPUT: u8 = 2;

/// Cuts bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
    whole: VecDeque<Vec<u8>>,
}

/// Keeps the end of what a command has written, both outputs in the order in which they came.
#[derive(Debug)]
pub struct Tail {
    most: usize,
    kept: VecDeque<u8>,
    header: Vec<u8>,
    left: usize,
    raw: bool,
    cut: bool,
}

// === impl Lines ===

impl Lines {
    /// Takes up bytes; `false` when a line is too long.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let mut parts = bytes.split(|byte| *byte == b'\n');
        if let Some(first) = parts.next() {
            self.begun.extend_from_slice(first);
        }
        for part in parts {
            let line = std::mem::replace(&mut self.begun, part.to_vec());
            if !line.trim_ascii().is_empty() {
                self.whole.push_back(line);
            }
        }
        self.begun.len() <= MAX_LINE_BYTES
    }
}

impl Iterator for Lines {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        self.whole.pop_front()
    }
}

// === impl Tail ===

impl Tail {
    /// Keeps `most` bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, kept: VecDeque::new(), header: Vec::new(), left: 0, raw: false, cut: false }
    }

    /// Takes up bytes of the stream. What does not look framed is taken as it is, to the end.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.raw {
                return self.keep(bytes);
            }
            if self.left == 0 {
                let (head, rest) = bytes.split_at(bytes.len().min(HEADER_BYTES - self.header.len()));
                self.header.extend_from_slice(head);
                bytes = rest;
                if self.header.len() == HEADER_BYTES {
                    self.begin();
                }
            } else {
                let (data, rest) = bytes.split_at(bytes.len().min(self.left));
                self.left -= data.len();
                self.keep(data);
                bytes = rest;
            }
        }
    }

    fn begin(&mut self) {
        let header = std::mem::take(&mut self.header);
        match header[..] {
            [output, 0, 0, 0, a, b, c, d] if output <= LAST_OUTPUT => {
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            }
            _ => {
                self.raw = true;
                self.keep(&header);
            }
        }
    }

    fn keep(&mut self, data: &[u8]) {
        self.kept.extend(data);
        let over = self.kept.len().saturating_sub(self.most);
        self.cut |= over > 0;
        self.kept.drain(..over);
    }

    /// The end of the output, without control characters but newlines and tabs, and without blank ends. Of a longer
    /// output it begins with a whole character.
    #[must_use]
    pub fn text(&self) -> String {
        let mut bytes: Vec<u8> = self.kept.iter().copied().collect();
        if self.cut {
            let torn = bytes.iter().take(3).take_while(|byte| **byte & 0xC0 == 0x80).count();
            bytes.drain(..torn);
        }
        let text = String::from_utf8_lossy(&bytes);
        let text: String = text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect();
        text.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(output: u8, text: &[u8]) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        [&[output, 0, 0, 0], &length[..], text].concat()
    }

    #[test]
    fn the_end_of_both_outputs_is_kept() {
        let mut tail = Tail::new(8);
        tail.push(&framed(1, b"0123456789"));
        tail.push(&framed(2, b"ab\x1b\n"));
        assert_eq!(tail.text(), "6789ab");
        let mut tail = Tail::new(4);
        tail.push(&framed(1, "x\u{e4}\u{e4}y".as_bytes()));
        assert_eq!(tail.text(), "\u{e4}y");
        assert_eq!(Tail::new(4).text(), "");
    }

    #[test]
    fn what_is_not_framed_is_taken_as_it_is() {
        let mut tail = Tail::new(100);
        tail.push(b"hello wo");
        tail.push(b"rld, this is a terminal");
        assert_eq!(tail.text(), "hello world, this is a terminal");
    }

    #[test]
    fn a_line_has_an_end() {
        let mut lines = Lines::default();
        assert!(lines.push(&vec![b'x'; MAX_LINE_BYTES]));
        assert!(!lines.push(b"x"));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_bytes_are_cut(
            parts in prop::collection::vec((1..3u8, "[a-z\\n]{0,30}"), 0..6), cut in 1..20usize
        ) {
            let stream: Vec<u8> = parts.iter().flat_map(|(output, text)| framed(*output, text.as_bytes())).collect();
            let mut tail = Tail::new(4096);
            stream.chunks(cut).for_each(|chunk| tail.push(chunk));
            let whole: String = parts.iter().map(|(_, text)| text.as_str()).collect();
            prop_assert_eq!(tail.text(), whole.trim());

            let mut lines = Lines::default();
            for chunk in whole.as_bytes().chunks(cut) {
                prop_assert!(lines.push(chunk));
            }
            let expected: Vec<&str> = whole.rsplit_once('\n').map_or("", |(lines, _)| lines).split('\n').collect();
            let got: Vec<String> = lines.by_ref().map(|line| String::from_utf8(line).unwrap()).collect();
            prop_assert_eq!(got, expected.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>());
        }
    }
}
