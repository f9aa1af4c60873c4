//! A model as a Hugging Face folder.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use moli_format::{FolderTensor, FormatError, Gguf, HuggingFaceFolder, TensorType};
use moli_text::{TextError, huggingface_tokenizer};
use serde_json::{Map, Value, json};

use crate::elements::{self, Recoder};
use crate::portable::FOLDER;
use crate::{ConvertError, Options, Output, Report, Watch};

/// Bytes of weights in one file, about.
const SHARD: u64 = 5_000_000_000;

/// Writes a model as a folder: configuration, weights, tokenizer.
///
/// # Errors
/// What has no place in a folder, by its name; whatever keeps the files from being written; [`ConvertError::Cancelled`]. Then there
/// is nothing new under the output's path or beside it.
pub fn to_folder(
    model: &Gguf,
    output: &Output,
    options: &Options,
    watch: Arc<Watch>,
) -> Result<Report, ConvertError> {
    split(model, output, options, watch, SHARD)
}

/// As [`to_folder`], with files of at most so many bytes of weights, or of one tensor.
fn split(
    model: &Gguf,
    output: &Output,
    options: &Options,
    watch: Arc<Watch>,
    limit: u64,
) -> Result<Report, ConvertError> {
    let HuggingFaceFolder { mut config, files: about, tensors } = HuggingFaceFolder::of(model)?;
    let dtype = options.dtype.map(Into::into);
    let planned: Vec<Planned> = tensors.into_iter().map(|tensor| Planned::new(tensor, dtype)).collect();
    let largest = planned.iter().max_by_key(|tensor| tensor.bytes);
    let name = largest.map_or("float32", |tensor| dtype_name(tensor.ttype).1);
    config.insert("torch_dtype".to_owned(), name.into());
    let (files, notes) = text(model, options, &mut config)?;
    let bytes = planned.iter().map(|tensor| tensor.bytes).sum();
    let report = Report { tensors: planned.len(), bytes, notes };
    output.write_folder(|folder| {
        for (name, text) in &files {
            write_file(&folder.join(name), |out| out.write_all(text.as_bytes()).map_err(failed))?;
        }
        let config = Value::Object(config.clone());
        for (name, json) in about.iter().map(|(name, json)| (*name, json)).chain([("config.json", &config)]) {
            let (path, pretty) = (folder.join(name), format!("{json:#}"));
            let above = path.parent().unwrap_or(folder);
            fs::create_dir_all(above).map_err(|source| FormatError::from_io(above, source))?;
            write_file(&path, |out| out.write_all(pretty.as_bytes()).map_err(failed))?;
        }
        weights(folder, &planned, limit, &*watch)
    })?;
    Ok(report)
}

/// The names and texts of a tokenizer's files, and what is to be said about them.
type Texts = (Vec<(&'static str, String)>, Vec<String>);

/// The files of the tokenizer.
fn text(model: &Gguf, options: &Options, config: &mut Map<String, Value>) -> Result<Texts, ConvertError> {
    let without = || (Vec::new(), vec!["the model has no tokenizer, and the folder gets none".to_owned()]);
    let has_none = match model.metadata().str_opt("tokenizer.ggml.model")? {
        None => model.metadata().get(FOLDER).is_none(),
        Some(kind) => matches!(kind, "none" | "no_vocab"),
    };
    if !options.tokenizer {
        return Ok((Vec::new(), Vec::new()));
    }
    if has_none {
        return Ok(without());
    }
    let tokenizer = match huggingface_tokenizer(model.metadata()) {
        Err(TextError::NoTokenizer { .. }) => return Ok(without()),
        other => other?,
    };
    if let Ok(Value::Object(generation)) = serde_json::from_str(&tokenizer.generation) {
        config.extend(generation);
    }
    let files = vec![
        ("tokenizer.json", tokenizer.tokenizer),
        ("tokenizer_config.json", tokenizer.config),
        ("generation_config.json", tokenizer.generation),
    ];
    Ok((files, Vec::new()))
}

/// A tensor and the type that it is written in.
struct Planned {
    tensor: FolderTensor,
    ttype: TensorType,
    bytes: u64,
}

impl Planned {
    fn new(tensor: FolderTensor, dtype: Option<TensorType>) -> Self {
        let source = tensor.rows.first().map(|rows| rows.tensor.ttype);
        let float = source.filter(|ttype| ttype.block_len() == 1 && *ttype != TensorType::F64);
        let ttype = dtype.or(float).unwrap_or(TensorType::F32);
        let elements = tensor.shape.iter().map(|&dim| dim as u64).product::<u64>();
        Self { tensor, ttype, bytes: elements * ttype.block_bytes() as u64 }
    }

    /// Writes its elements.
    fn write(&self, out: &mut dyn Write, watch: &Watch) -> Result<(), ConvertError> {
        let tensor = &self.tensor;
        let mut recoder = Recoder::new(self.ttype, if tensor.minus_one { -1.0 } else { 0.0 });
        if tensor.transposed {
            return self.write_transposed(out, watch);
        }
        let mut columns = Vec::new();
        each_row(tensor, |ttype, row| {
            if !tensor.columns.is_empty() {
                columns.clear();
                elements::floats(ttype, row, 0.0, &mut columns)?;
                let width = (columns.len() / tensor.columns.len()).max(1);
                let stretch = |&at: &usize| columns.chunks_exact(width).nth(at).unwrap_or_default();
                let row: Vec<f32> = tensor.columns.iter().flat_map(stretch).copied().collect();
                let mut bytes = Vec::with_capacity(row.len() * 4);
                elements::encode(&tensor.name, self.ttype, &row, &mut bytes)?;
                out.write_all(&bytes).map_err(failed)?;
            } else if recoder.keeps(ttype) {
                out.write_all(row).map_err(failed)?;
            } else {
                out.write_all(recoder.row(&tensor.name, ttype, row)?).map_err(failed)?;
            }
            if watch(row.len() as u64) { Ok(()) } else { Err(ConvertError::Cancelled) }
        })
    }

    /// Each matrix as a whole, since its columns are what is written.
    fn write_transposed(&self, out: &mut dyn Write, watch: &Watch) -> Result<(), ConvertError> {
        let tensor = &self.tensor;
        let rows = tensor.shape.last().copied().unwrap_or(1).max(1);
        let cols = tensor.rows.first().map_or(1, |rows| rows.cols).max(1);
        let (mut values, mut column, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        each_row(tensor, |ttype, row| {
            elements::floats(ttype, row, 0.0, &mut values)?;
            if values.len() == rows * cols {
                for index in 0..cols {
                    column.clear();
                    column.extend(values.iter().skip(index).step_by(cols));
                    bytes.clear();
                    elements::encode(&tensor.name, self.ttype, &column, &mut bytes)?;
                    out.write_all(&bytes).map_err(failed)?;
                }
                values.clear();
            }
            if watch(row.len() as u64) { Ok(()) } else { Err(ConvertError::Cancelled) }
        })
    }
}

/// The rows in their order, with the type that they are stored in.
fn each_row(
    tensor: &FolderTensor,
    mut each: impl FnMut(TensorType, &[u8]) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    if tensor.in_turns {
        let count = tensor.rows.first().map_or(0, |rows| rows.count);
        return (0..count).try_for_each(|index| {
            tensor.rows.iter().try_for_each(|rows| each(rows.tensor.ttype, rows.row(index)))
        });
    }
    tensor
        .rows
        .iter()
        .try_for_each(|rows| (0..rows.count).try_for_each(|index| each(rows.tensor.ttype, rows.row(index))))
}

/// Writes the weights in files of at most `limit` bytes, with an index if there are several.
fn weights(folder: &Path, tensors: &[Planned], limit: u64, watch: &Watch) -> Result<(), ConvertError> {
    let mut shards: Vec<Vec<&Planned>> = Vec::new();
    let mut filled = u64::MAX;
    for tensor in tensors {
        if filled.saturating_add(tensor.bytes) > limit {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += tensor.bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    let (count, mut map) = (shards.len(), Map::new());
    for (shard, number) in shards.iter().zip(1..) {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        write_file(&folder.join(&name), |out| safetensors(shard, out, watch))?;
        map.extend(shard.iter().map(|tensor| (tensor.tensor.name.clone(), Value::from(name.clone()))));
    }
    if count > 1 {
        let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map }).to_string();
        write_file(&folder.join("model.safetensors.index.json"), |out| {
            out.write_all(index.as_bytes()).map_err(failed)
        })?;
    }
    Ok(())
}

/// One file: the length of its header, the header, the data.
fn safetensors(tensors: &[&Planned], out: &mut dyn Write, watch: &Watch) -> Result<(), ConvertError> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut start = 0;
    for planned in tensors {
        let (end, (dtype, _)) = (start + planned.bytes, dtype_name(planned.ttype));
        let entry = json!({ "dtype": dtype, "shape": planned.tensor.shape, "data_offsets": [start, end] });
        header.insert(planned.tensor.name.clone(), entry);
        start = end;
    }
    let mut header = Value::Object(header).to_string();
    // The data begins at a multiple of eight.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(header.as_bytes()).map_err(failed)?;
    tensors.iter().try_for_each(|planned| planned.write(out, watch))
}

/// A float type as safetensors and as `torch_dtype` have it.
fn dtype_name(ttype: TensorType) -> (&'static str, &'static str) {
    match ttype {
        TensorType::F16 => ("F16", "float16"),
        TensorType::BF16 => ("BF16", "bfloat16"),
        _ => ("F32", "float32"),
    }
}

fn write_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let named = |source| ConvertError::from(FormatError::from_io(path, source));
    let file = File::create_new(path).map_err(named)?;
    let mut out = BufWriter::new(&file);
    write(&mut out)?;
    out.flush().and_then(|()| file.sync_all()).map_err(named)
}

fn failed(source: io::Error) -> ConvertError {
    FormatError::Write { source }.into()
}

impl Output {
    /// Makes a folder beside the path, has it filled and renames it when it is whole.
    fn write_folder(&self, fill: impl FnOnce(&Path) -> Result<(), ConvertError>) -> Result<(), ConvertError> {
        let path = self.path();
        let named = |source| ConvertError::from(FormatError::from_io(path, source));
        let beside = |end: &str| {
            let mut name = path.file_name().unwrap_or_default().to_os_string();
            name.push(format!(".{}.{end}", std::process::id()));
            path.with_file_name(name)
        };
        let (part, before) = (beside("part"), beside("before"));
        let written = fs::create_dir(&part).map_err(named).and_then(|()| {
            fill(&part)?;
            if path.exists() {
                fs::rename(path, &before).map_err(named)?;
            }
            fs::rename(&part, path).map_err(named)
        });
        if written.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_dir_all(&part);
            if before.exists() && !path.exists() {
                let _ = fs::rename(&before, path);
            }
            return written;
        }
        if before.exists() {
            fs::remove_dir_all(&before).map_err(named)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use moli_format::ReadMode;

    use super::*;

    #[test]
    fn weights_in_several_files() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures/llama");
        let model = Gguf::open(&fixture, ReadMode::Map).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let opened = |name: &str, limit: u64| {
            let path = folder.path().join(name);
            let output = Output::new(&path, &[&fixture], false).unwrap();
            split(&model, &output, &Options::default(), Arc::new(|_| true), limit).unwrap();
            (Gguf::open(&path, ReadMode::Map).unwrap(), path)
        };
        let (whole, path) = opened("whole", SHARD);
        assert!(path.join("model.safetensors").is_file() && whole.paths().len() == 1);
        let (parts, path) = opened("parts", 20_000);
        assert!(path.join("model.safetensors.index.json").is_file() && parts.paths().len() > 2);
        for part in parts.paths() {
            // The header comes on top.
            assert!(part.metadata().unwrap().len() < 23_000, "{part:?}");
        }
        for tensor in model.tensors() {
            assert_eq!(whole.tensor(&tensor.name), Some(tensor));
            assert_eq!(parts.tensor(&tensor.name), Some(tensor));
        }
    }
}
