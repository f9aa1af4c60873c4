//! Numbers for people.

/// Bytes: `98.4 MB`, in powers of 1000 as file managers and download pages count.
pub fn bytes(n: u64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// A count: `134.5 M`.
pub fn count(n: u64) -> String {
    scaled(n, &["", "k", "M", "G", "T", "P"])
}

/// Bytes where several are compared: `1115.8 MB`.
pub fn megabytes(n: u64) -> String {
    format!("{:.1} MB", n as f64 / 1e6)
}

fn scaled(n: u64, units: &[&str; 6]) -> String {
    let mut value = n as f64;
    let mut index = 0;
    // 999.95 would be written as 1000.0.
    while value >= 999.95 && index + 1 < units.len() {
        value /= 1000.0;
        index += 1;
    }
    let unit = units.get(index).copied().unwrap_or_default();
    let number = if index == 0 { n.to_string() } else { format!("{value:.1}") };
    format!("{number} {unit}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_say_them() {
        let shown = [0, 999, 1000, 98_362_432, 999_950_000, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "98.4 MB", "1.0 GB", "18446.7 PB"]);
        assert_eq!([1_115_823_904, 80_000, 0].map(megabytes), ["1115.8 MB", "0.1 MB", "0.0 MB"]);
        assert_eq!([7, 134_515_008].map(count), ["7", "134.5 M"]);
    }
}
