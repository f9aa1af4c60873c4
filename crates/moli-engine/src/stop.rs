//! Stop strings in streamed text.
//!
//! An Aho-Corasick automaton (doi:10.1145/360825.360855) reads the text byte by byte. Its state is the longest end of the
//! text that may be the beginning of a stop string: just that much is held back, and each byte costs amortised constant
//! time whatever the strings are. Where the text is cut does not depend on how it came in tokens.

use std::collections::VecDeque;

use crate::EngineError;

/// Most stop strings of one answer.
pub const MAX_STOP_STRINGS: usize = 4096;
/// Most bytes of one stop string.
pub const MAX_STOP_LENGTH: usize = 4096;
/// Most bytes of all stop strings of one answer.
pub const MAX_STOP_BYTES: usize = 1 << 20;

const NONE: u32 = u32::MAX;
const ROOT: u32 = 0;

/// A node stands for a beginning of one or more stop strings.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// The byte on the way from the parent.
    byte: u8,
    first_child: u32,
    next_sibling: u32,
    /// The longest proper end of this beginning that is also a beginning.
    fail: u32,
    /// Its length in bytes.
    depth: u32,
    /// The longest stop string that ends here.
    found: u32,
}

/// Reads text and holds back what might become a stop string.
#[derive(Debug, Clone)]
pub(crate) struct StopMatcher {
    nodes: Vec<Node>,
    lengths: Vec<usize>,
    state: u32,
    held: String,
}

impl StopMatcher {
    pub(crate) fn new(texts: &[String]) -> Result<Self, EngineError> {
        check(texts)?;
        let root = Node { byte: 0, first_child: NONE, next_sibling: NONE, fail: ROOT, depth: 0, found: NONE };
        let lengths = texts.iter().map(String::len).collect();
        let mut matcher = Self { nodes: vec![root], lengths, state: ROOT, held: String::new() };
        for (index, text) in texts.iter().enumerate() {
            matcher.insert(index as u32, text);
        }
        matcher.link();
        Ok(matcher)
    }

    /// Appends what can be shown of the text so far to `out`. At the first stop string to be complete (the longest of
    /// those that end together) the text ends before it, and its index is returned.
    pub(crate) fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.lengths.is_empty() {
            out.push_str(text);
            return None;
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (offset, byte) in text.bytes().enumerate() {
            self.state = self.next(self.state, byte);
            let found = self.node(self.state).found;
            if found != NONE {
                let length = self.lengths.get(found as usize).copied().unwrap_or(0);
                let end = (before + offset + 1).saturating_sub(length);
                out.push_str(self.held.get(..end).unwrap_or_default());
                self.held.clear();
                self.state = ROOT;
                return Some(found as usize);
            }
        }
        // A stop string begins with a whole character, so this is never inside one.
        let decided = self.held.len().saturating_sub(self.node(self.state).depth as usize);
        if decided > 0 {
            out.push_str(self.held.get(..decided).unwrap_or_default());
            self.held.drain(..decided);
        }
        None
    }

    /// Releases what is held back: no more text comes.
    pub(crate) fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.state = ROOT;
    }

    /// Indices are made by `insert` and always valid; the root answers for one that is not.
    fn node(&self, index: u32) -> Node {
        let root = Node { byte: 0, first_child: NONE, next_sibling: NONE, fail: ROOT, depth: 0, found: NONE };
        self.nodes.get(index as usize).copied().unwrap_or(root)
    }

    /// At most [`MAX_STOP_STRINGS`] branches exist in the whole tree, so the lists of siblings are short in sum.
    fn child(&self, parent: u32, byte: u8) -> Option<u32> {
        let mut index = self.node(parent).first_child;
        while index != NONE {
            let node = self.node(index);
            if node.byte == byte {
                return Some(index);
            }
            index = node.next_sibling;
        }
        None
    }

    fn next(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            match self.child(state, byte) {
                Some(child) => return child,
                None if state == ROOT => return ROOT,
                None => state = self.node(state).fail,
            }
        }
    }

    fn insert(&mut self, text_index: u32, text: &str) {
        let mut at = ROOT;
        for (depth, byte) in (1..).zip(text.bytes()) {
            at = match self.child(at, byte) {
                Some(child) => child,
                None => {
                    let index = self.nodes.len() as u32;
                    let parent = self.node(at);
                    self.nodes.push(Node {
                        byte,
                        first_child: NONE,
                        next_sibling: parent.first_child,
                        fail: ROOT,
                        depth,
                        found: NONE,
                    });
                    if let Some(parent) = self.nodes.get_mut(at as usize) {
                        parent.first_child = index;
                    }
                    index
                }
            };
        }
        if let Some(node) = self.nodes.get_mut(at as usize).filter(|node| node.found == NONE) {
            node.found = text_index;
        }
    }

    /// Breadth first: the shorter ends of a node are linked before it.
    fn link(&mut self) {
        let mut queue = VecDeque::from([ROOT]);
        while let Some(parent) = queue.pop_front() {
            let mut index = self.node(parent).first_child;
            while index != NONE {
                let node = self.node(index);
                let fail = if parent == ROOT { ROOT } else { self.next(self.node(parent).fail, node.byte) };
                let inherited = self.node(fail).found;
                if let Some(node) = self.nodes.get_mut(index as usize) {
                    node.fail = fail;
                    if node.found == NONE {
                        node.found = inherited;
                    }
                }
                queue.push_back(index);
                index = node.next_sibling;
            }
        }
    }
}

fn check(texts: &[String]) -> Result<(), EngineError> {
    if texts.len() > MAX_STOP_STRINGS {
        let allowed = format!("at most {MAX_STOP_STRINGS} texts");
        return Err(EngineError::parameter("stop", format!("{} texts", texts.len()), allowed));
    }
    let mut total = 0_usize;
    for text in texts {
        if text.is_empty() || text.len() > MAX_STOP_LENGTH {
            let value = if text.is_empty() { "empty".into() } else { format!("{} bytes long", text.len()) };
            return Err(EngineError::parameter(
                "stop",
                value,
                format!("texts of 1 to {MAX_STOP_LENGTH} bytes"),
            ));
        }
        total += text.len();
    }
    if total > MAX_STOP_BYTES {
        let allowed = format!("at most {MAX_STOP_BYTES} bytes in all");
        return Err(EngineError::parameter("stop", format!("{total} bytes in all"), allowed));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(texts: &[&str]) -> StopMatcher {
        StopMatcher::new(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    /// What each push shows, what `finish` adds, and which string was found.
    fn run(texts: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut matcher = matcher(texts);
        let mut shown = Vec::new();
        for piece in pieces {
            let mut out = String::new();
            let found = matcher.push(piece, &mut out);
            shown.push(out);
            if found.is_some() {
                return (shown, found);
            }
        }
        let mut out = String::new();
        matcher.finish(&mut out);
        shown.push(out);
        (shown, None)
    }

    #[test]
    fn a_string_over_three_tokens_is_never_shown() {
        assert_eq!(
            run(&["<end>"], &["Hi <", "en", "d> more"]),
            (vec!["Hi ".into(), "".into(), "".into()], Some(0))
        );
    }

    #[test]
    fn a_false_beginning_is_released_as_soon_as_it_is_decided() {
        let (shown, found) = run(&["<end>"], &["a<", "e", "x", "<en"]);
        assert_eq!(shown, ["a", "", "<ex", "", "<en"]);
        assert_eq!(found, None);
    }

    #[test]
    fn of_strings_that_end_together_the_longest_wins() {
        assert_eq!(run(&["b", "ab", "c"], &["xab"]), (vec!["x".into()], Some(1)));
        assert_eq!(run(&["abc", "b"], &["xabc"]), (vec!["xa".into()], Some(1)));
        assert_eq!(run(&["中文", "文"], &["说中", "文"]), (vec!["说".into(), "".into()], Some(0)));
    }

    #[test]
    fn overlapping_beginnings_fall_back() {
        assert_eq!(run(&["aab"], &["aaa", "ab!"]), (vec!["a".into(), "a".into()], Some(0)));
    }

    #[test]
    fn limits_are_errors() {
        let stop = |texts: Vec<String>| StopMatcher::new(&texts).map(|_| ());
        for texts in [
            vec![String::new()],
            vec!["x".repeat(MAX_STOP_LENGTH + 1)],
            vec!["x".into(); MAX_STOP_STRINGS + 1],
            vec!["x".into(); 500_000],
            vec!["y".repeat(MAX_STOP_LENGTH); MAX_STOP_BYTES / MAX_STOP_LENGTH + 1],
        ] {
            assert!(matches!(stop(texts), Err(EngineError::InvalidParameter { name: "stop", .. })));
        }
        stop(vec!["x".repeat(MAX_STOP_LENGTH); 8]).unwrap();
    }

    #[test]
    fn hostile_strings_take_linear_time() {
        let texts: Vec<String> = (0..256).map(|i| "a".repeat(4095 - i) + "b").collect();
        let mut matcher = StopMatcher::new(&texts).unwrap();
        let mut out = String::new();
        for _ in 0..100_000 {
            assert_eq!(matcher.push("aaaaaaaa", &mut out), None);
        }
        matcher.finish(&mut out);
        assert_eq!(out.len(), 800_000);
    }

    proptest! {
        /// Against the definition: the shortest beginning of the text that ends with a stop string is cut before the
        /// longest such string; and nothing is held back that no stop string begins with.
        #[test]
        fn matches_the_definition(
            texts in prop::collection::vec("[abé]{1,4}", 1..5),
            pieces in prop::collection::vec("[abcé]{0,5}", 0..12),
        ) {
            let mut matcher = StopMatcher::new(&texts).unwrap();
            let whole: String = pieces.concat();
            let expected = (1..=whole.len()).find_map(|end| {
                let ends = texts.iter().filter(|text| whole.as_bytes()[..end].ends_with(text.as_bytes()));
                ends.map(|text| end - text.len()).min()
            });
            let (mut out, mut read, mut found) = (String::new(), String::new(), false);
            for piece in &pieces {
                found = matcher.push(piece, &mut out).is_some();
                if found {
                    break;
                }
                read.push_str(piece);
                let held = &read[out.len()..];
                prop_assert!(read.starts_with(&out));
                prop_assert!(held.is_empty() || texts.iter().any(|t| t.starts_with(held) && t.len() > held.len()));
                for start in (0..held.len()).filter(|&i| read.is_char_boundary(out.len() + i)).chain([0]) {
                    prop_assert!(start == 0 || !held.is_empty());
                }
            }
            if !found {
                matcher.finish(&mut out);
            }
            match expected {
                Some(end) => prop_assert_eq!(out, &whole[..end]),
                None => prop_assert_eq!(out, whole),
            }
        }
    }
}
