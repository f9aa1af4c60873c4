//! How a model marks what it thinks before it answers.

/// The texts between which a model thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasoningTags {
    open: String,
    close: String,
}

/// What templates of reasoning models write, the likeliest first.
const KNOWN: &[(&str, &str)] = &[
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
];

impl ReasoningTags {
    /// The most bytes of a tag.
    pub const MAX_TAG: usize = 64;

    /// Tags of one's own. `None` where one is empty, longer than [`MAX_TAG`](Self::MAX_TAG), begins or ends with white
    /// space, or both are the same.
    pub fn new(open: impl Into<String>, close: impl Into<String>) -> Option<Self> {
        let (open, close) = (open.into(), close.into());
        let whole = |tag: &str| !tag.is_empty() && tag.len() <= Self::MAX_TAG && tag.trim() == tag;
        (whole(&open) && whole(&close) && open != close).then_some(Self { open, close })
    }

    /// The tags that a template's source tells of.
    pub fn detect(source: &str) -> Option<Self> {
        let (open, close) = KNOWN.iter().find(|(_, close)| source.contains(close))?;
        Self::new(*open, *close)
    }

    /// What begins the reasoning.
    pub fn open(&self) -> &str {
        &self.open
    }

    /// What ends the reasoning; an engine that ends it early writes this.
    pub fn close(&self) -> &str {
        &self.close
    }

    /// Whether an answer to this prompt begins inside the reasoning: the template has opened it at the prompt's end.
    pub fn opened_by(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(&self.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_tell_their_tags() {
        let tags = |source| ReasoningTags::detect(source).map(|tags| tags.open);
        assert_eq!(tags("{{ content.split('</think>')[-1] }}").as_deref(), Some("<think>"));
        assert_eq!(tags("[THINK]{{ m.reasoning_content }}[/THINK]").as_deref(), Some("[THINK]"));
        assert_eq!(tags("{{ content }}"), None);
    }

    #[test]
    fn only_the_end_of_a_prompt_opens() {
        let tags = ReasoningTags::new("<think>", "</think>").unwrap();
        assert!(tags.opened_by("<|im_start|>assistant\n<think>\n"));
        assert!(!tags.opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
        assert!(!tags.opened_by("say <think>\n<|im_start|>assistant\n"));
    }

    #[test]
    fn tags_that_could_not_be_found_again() {
        for (open, close) in [("", "x"), ("a", "a"), (" a", "b"), ("a", "b\n"), (&"a".repeat(65), "b")] {
            assert_eq!(ReasoningTags::new(open, close), None);
        }
    }
}
