//! Where things are: folders, endpoints and the Python command.

use std::env;
use std::path::PathBuf;

use etcetera::BaseStrategy;

use crate::HubError;

/// Folders and endpoints. [`HubConfig::from_env`] reads the environment once; tests fill the fields.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The cache: `MOLI_HOME`, else `moli` in the platform's cache folder.
    pub cache_dir: PathBuf,
    /// The user's configuration: `MOLI_CONFIG`, else `moli` in the platform's configuration folder.
    /// Catalogue files are in its `models` folder.
    pub config_dir: PathBuf,
    /// Hugging Face's endpoint: `HF_ENDPOINT`, else <https://huggingface.co>.
    pub hf_endpoint: String,
    /// Hugging Face's own folder, where its tools leave a token: `HF_HOME`, else `huggingface` in `~/.cache`.
    pub hf_home: Option<PathBuf>,
    /// Hugging Face's token: `HF_TOKEN`; `None` looks into `hf_home`.
    pub hf_token: Option<String>,
    /// ModelScope's endpoint: `MODELSCOPE_ENDPOINT`, else <https://modelscope.cn>.
    pub modelscope_endpoint: String,
    /// Python commands in the order in which they are tried: `MOLI_PYTHON`, else `python3` and `python`.
    pub python: Vec<String>,
    /// Whether every network source is forbidden: `MOLI_OFFLINE`, or an option of whoever asks.
    pub offline: bool,
    /// Whether Hugging Face alone is forbidden: `HF_HUB_OFFLINE`.
    pub hf_offline: bool,
}

impl HubConfig {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`HubError::NoHome`] when a folder is neither named by a variable nor known to the platform.
    pub fn from_env() -> Result<Self, HubError> {
        let folders = etcetera::choose_base_strategy().ok();
        let folder = |variable: &str, default: Option<PathBuf>| match path_var(variable) {
            Some(path) => Ok(path),
            None => default.map(|p| p.join("moli")).ok_or(HubError::NoHome),
        };
        Ok(Self {
            cache_dir: folder("MOLI_HOME", folders.as_ref().map(BaseStrategy::cache_dir))?,
            config_dir: folder("MOLI_CONFIG", folders.as_ref().map(BaseStrategy::config_dir))?,
            hf_endpoint: text_var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            hf_home: path_var("HF_HOME")
                .or_else(|| etcetera::home_dir().ok().map(|home| home.join(".cache").join("huggingface"))),
            hf_token: text_var("HF_TOKEN"),
            modelscope_endpoint: text_var("MODELSCOPE_ENDPOINT")
                .unwrap_or_else(|| "https://modelscope.cn".to_owned()),
            python: match text_var("MOLI_PYTHON") {
                Some(python) => vec![python],
                None => vec!["python3".to_owned(), "python".to_owned()],
            },
            offline: flag("MOLI_OFFLINE"),
            hf_offline: flag("HF_HUB_OFFLINE"),
        })
    }

    /// The folder with the user's own catalogue files.
    pub fn models_dir(&self) -> PathBuf {
        self.config_dir.join("models")
    }
}

fn path_var(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

fn text_var(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.is_empty())
}

fn flag(name: &str) -> bool {
    text_var(name).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off"))
}
