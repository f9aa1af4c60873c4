//! `moli list`.

use std::fmt::Write as _;

use anyhow::Result;
use clap::Args;
use moli_hub::{Hub, HubConfig};
use serde::Serialize;

use crate::cli::Exit;
use crate::output::{Answers, bytes, escape, note};

/// List the models that have a name and the ones that are here
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listing {
    models: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    name: String,
    /// Bytes, where they are known.
    size: Option<u64>,
    present: bool,
    path: Option<String>,
    licence: Option<String>,
    description: Option<String>,
}

impl List {
    pub(crate) fn run(self) -> Result<Exit> {
        let hub = Hub::new(HubConfig::from_env()?);
        for problem in hub.catalogue().problems() {
            note!("a catalogue file was left out: {}", escape(&problem.to_string()));
        }
        let listing = Listing { models: models(&hub)? };
        Answers::new().report(self.json, &listing, |listing| table(&listing.models))?;
        Ok(Exit::Done)
    }
}

fn models(hub: &Hub) -> Result<Vec<Model>> {
    let mut cached = hub.cache().list()?;
    let mut models = Vec::new();
    for entry in hub.catalogue().entries() {
        let here = cached.iter().position(|c| c.name() == entry.name).map(|index| cached.remove(index));
        models.push(Model {
            name: entry.name.clone(),
            size: here.as_ref().map(|c| c.size()).or_else(|| entry.size()),
            present: here.is_some(),
            path: here.map(|c| c.path.display().to_string()),
            licence: Some(entry.licence.name.clone()),
            description: Some(entry.description.clone()),
        });
    }
    // What was pulled by its repository or address.
    models.extend(cached.into_iter().map(|c| Model {
        name: c.name().to_owned(),
        size: Some(c.size()),
        present: true,
        path: Some(c.path.display().to_string()),
        licence: c.manifest.licence.clone(),
        description: Some(format!("from {}", c.manifest.source)),
    }));
    Ok(models)
}

fn table(models: &[Model]) -> String {
    let rows: Vec<[String; 4]> = models
        .iter()
        .map(|m| {
            let here = if m.present { "here" } else { "-" };
            let about = [m.description.as_deref(), m.licence.as_deref()].into_iter().flatten();
            [
                escape(&m.name).into_owned(),
                m.size.map_or_else(|| "?".to_owned(), bytes),
                here.to_owned(),
                about.map(escape).collect::<Vec<_>>().join(" · "),
            ]
        })
        .collect();
    let width = |column: usize, title: &str| {
        rows.iter()
            .filter_map(|r| r.get(column))
            .map(|c| c.chars().count())
            .max()
            .unwrap_or(0)
            .max(title.len())
    };
    let (name, size) = (width(0, "NAME"), width(1, "SIZE"));
    let mut table = format!("{:name$}  {:>size$}  CACHE  ABOUT\n", "NAME", "SIZE");
    for [n, s, here, about] in &rows {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{n:name$}  {s:>size$}  {here:5}  {about}");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_files_cannot_move_the_cursor() {
        let model = Model {
            name: "x\u{1b}[2J".to_owned(),
            size: None,
            present: false,
            path: None,
            licence: None,
            description: Some("a\nb".to_owned()),
        };
        let table = table(&[model]);
        assert_eq!(table.lines().count(), 2);
        assert!(table.contains("x\\u{1b}[2J") && table.contains("a\\nb"), "{table}");
    }
}
