//! Lists of a request that end where they may: what is beyond is not read, so that it costs nothing.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess};

/// Reads a list of at most so many.
///
/// # Errors
/// Where it has more, or one of them is wrong.
pub(crate) fn list<'de, A: SeqAccess<'de>, T: DeserializeOwned>(
    mut items: A,
    most: usize,
) -> Result<Vec<T>, A::Error> {
    let mut list = Vec::new();
    while let Some(item) = items.next_element()? {
        if list.len() == most {
            return Err(Error::custom(format!("there are more than {most}")));
        }
        list.push(item);
    }
    Ok(list)
}

/// Reads an object of at most so many fields, each of them once.
///
/// # Errors
/// Where it has more, one is there twice, or one of them is wrong.
pub(crate) fn map<'de, A: MapAccess<'de>, T: DeserializeOwned>(
    mut fields: A,
    most: usize,
) -> Result<BTreeMap<String, T>, A::Error> {
    let mut map = BTreeMap::new();
    while let Some((name, value)) = fields.next_entry::<String, T>()? {
        if map.len() == most {
            return Err(Error::custom(format!("there are more than {most}")));
        }
        if map.contains_key(&name) {
            let shown: String = name.chars().take(40).collect();
            return Err(Error::custom(format!("{shown:?} is there twice")));
        }
        map.insert(name, value);
    }
    Ok(map)
}
