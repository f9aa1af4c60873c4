//! Names that become folders and files, and the forms in which a model can be named.

use std::path::{Component, Path};

use crate::HubError;
use crate::digest::sha256_hex;

/// Refuses what cannot be one folder's name on every platform.
pub(crate) fn check_name(name: &str) -> Result<(), HubError> {
    let error = |reason| Err(HubError::InvalidName { name: name.to_owned(), reason });
    if name.is_empty() || name.len() > 200 {
        return error("it must have 1 to 200 characters");
    }
    if name.contains(['/', '\\']) {
        return error("it must not contain a path separator");
    }
    if name.contains("..") {
        return error("it must not contain '..'");
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
        return error("only ASCII letters, digits, '.', '_' and '-' are allowed");
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || name.ends_with('.') {
        return error("it must start with a letter or digit and not end with '.'");
    }
    Ok(())
}

/// Refuses a file name that would leave its folder, or take the manifest's place. It may be in one folder of its own.
pub(crate) fn check_file_name(name: &str) -> Result<(), HubError> {
    for part in name.splitn(2, '/') {
        check_name(part).map_err(|error| match error {
            HubError::InvalidName { reason, .. } => HubError::InvalidName { name: name.to_owned(), reason },
            other => other,
        })?;
    }
    if name.eq_ignore_ascii_case(crate::cache::MANIFEST) {
        return Err(HubError::InvalidName {
            name: name.to_owned(),
            reason: "this file belongs to the cache",
        });
    }
    Ok(())
}

/// A model that is named by where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reference {
    /// `hf:owner/repo[/file][@revision]`, or the same without `hf:`.
    Hf { repo: String, file: Option<String>, revision: Option<String> },
    /// `modelscope:owner/repo[/file][@revision]`.
    Modelscope { repo: String, file: Option<String>, revision: Option<String> },
    /// `http://…gguf` or `https://…gguf`.
    Url(String),
}

impl Reference {
    /// `None`: not written like a reference. An error: written like one, and wrong.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, HubError> {
        let error = |reason: &str| HubError::InvalidReference {
            reference: text.to_owned(),
            reason: reason.to_owned(),
        };
        if text.starts_with("https://") || text.starts_with("http://") {
            url_file_name(text).ok_or_else(|| error("the address must end in the name of a .gguf file"))?;
            return Ok(Some(Self::Url(text.to_owned())));
        }
        if text.contains("://") {
            return Err(error("only http and https addresses can be fetched"));
        }
        let (kind, rest) = match text.split_once(':') {
            Some(("hf", rest)) => ("hf", rest),
            Some(("modelscope", rest)) => ("modelscope", rest),
            _ if looks_like_path(text) => return Ok(None),
            _ if text.split('/').count() >= 2 => ("", text),
            _ => return Ok(None),
        };
        let (path, revision) = match rest.split_once('@') {
            Some((path, revision)) => (path, Some(revision.to_owned())),
            None => (rest, None),
        };
        let mut parts = path.splitn(3, '/');
        let part_is_fine = |part: &str| {
            check_name(part).is_ok()
                || (!part.is_empty() && !part.contains("..") && !part.contains(['\\', '/']))
        };
        let (Some(owner), Some(name)) = (parts.next(), parts.next()) else {
            return Err(error("expected owner/repository[/file][@revision]"));
        };
        let file = parts.next().map(str::to_owned);
        let whole = [owner, name].into_iter().chain(file.iter().flat_map(|f| f.split('/')));
        if !whole.into_iter().all(part_is_fine) || revision.as_ref().is_some_and(|r| r.is_empty()) {
            return if kind.is_empty() {
                Ok(None)
            } else {
                Err(error("expected owner/repository[/file][@revision]"))
            };
        }
        let repo = format!("{owner}/{name}");
        Ok(Some(match kind {
            "modelscope" => Self::Modelscope { repo, file, revision },
            _ => Self::Hf { repo, file, revision },
        }))
    }

    /// The model's folder in the cache: readable, and a few digits of a digest so that two references never share it.
    pub(crate) fn cache_name(&self) -> String {
        let canonical = match self {
            Self::Hf { repo, file, revision } => canonical("hf", repo, file, revision),
            Self::Modelscope { repo, file, revision } => canonical("modelscope", repo, file, revision),
            Self::Url(url) => url.clone(),
        };
        let readable = match self {
            Self::Hf { repo, file, .. } | Self::Modelscope { repo, file, .. } => {
                file.as_deref().unwrap_or(repo).to_owned()
            }
            Self::Url(url) => url_file_name(url).unwrap_or_default(),
        };
        let readable = readable.rsplit('/').next().unwrap_or_default();
        let readable = readable.strip_suffix(".gguf").unwrap_or(readable);
        let readable: String = readable
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
            .collect();
        let readable = readable.trim_matches(['.', '-', '_']).replace("..", "-");
        let readable: String = readable.chars().take(100).collect();
        let digest: String = sha256_hex(canonical.as_bytes()).chars().take(8).collect();
        if readable.is_empty() { format!("model-{digest}") } else { format!("{readable}-{digest}") }
    }
}

fn canonical(kind: &str, repo: &str, file: &Option<String>, revision: &Option<String>) -> String {
    format!(
        "{kind}:{repo}{}{}",
        file.as_ref().map(|f| format!("/{f}")).unwrap_or_default(),
        revision.as_ref().map(|r| format!("@{r}")).unwrap_or_default()
    )
}

/// The last segment of an address, when it is the name of a GGUF file.
pub(crate) fn url_file_name(url: &str) -> Option<String> {
    let path = url.split(['?', '#']).next()?;
    let (_, rest) = path.split_once("://")?;
    let (_, path) = rest.split_once('/')?;
    let name = path.rsplit('/').next()?;
    let name: String = name.chars().map(|c| if c == '%' || c == '+' { '-' } else { c }).collect();
    (name.to_ascii_lowercase().ends_with(".gguf") && check_file_name(&name).is_ok()).then_some(name)
}

/// Whether MODEL is meant as a file on this machine: then a missing file is said to be missing.
pub(crate) fn looks_like_path(text: &str) -> bool {
    let path = Path::new(text);
    let first = path.components().next();
    matches!(
        first,
        Some(Component::RootDir | Component::CurDir | Component::ParentDir | Component::Prefix(_))
    ) || text.starts_with('~')
        || text.contains('\\')
        || (text.to_ascii_lowercase().ends_with(".gguf")
            && text.split('/').count() < 3
            && !text.contains(':'))
}
