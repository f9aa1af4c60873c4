//! The page at `/`: its files are in the program, and it loads nothing from anywhere else.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::app::App;

/// A file of the page: its name and what it holds.
type File = (&'static str, &'static [u8]);

macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../page/", $name)))
    };
}

/// Every file in `page/` (a test compares this list with the folder).
const FILES: &[File] = &[
    file!("answer.js"),
    file!("api.js"),
    file!("app.js"),
    file!("chat.js"),
    file!("dom.js"),
    file!("errors.js"),
    file!("i18n.js"),
    file!("icon.svg"),
    file!("index.html"),
    file!("key.js"),
    file!("markdown-inline.js"),
    file!("markdown.js"),
    file!("message.js"),
    file!("metrics.js"),
    file!("notice.js"),
    file!("paced.js"),
    file!("prometheus.js"),
    file!("settings.js"),
    file!("sse.js"),
    file!("state.js"),
    file!("storage.js"),
    file!("style.css"),
];

/// What the page may do: nothing but show its own files and ask its own server. Whatever a model says stays text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The paths of the page.
pub(crate) fn routes() -> Router<Arc<App>> {
    let index = FILES.iter().find(|(name, _)| *name == "index.html");
    let routes = index.into_iter().map(|&(name, bytes)| ("/".to_owned(), name, bytes));
    let routes = routes.chain(FILES.iter().map(|&(name, bytes)| (format!("/{name}"), name, bytes)));
    routes.fold(Router::new(), |router, (path, name, bytes)| {
        router.route(&path, get(move || async move { response(name, bytes) }))
    })
}

/// Whether a path is the page's: its files are no secret, what it asks for is.
pub(crate) fn has(path: &str) -> bool {
    path == "/" || path.strip_prefix('/').is_some_and(|path| FILES.iter().any(|(name, _)| *name == path))
}

fn response(name: &str, bytes: &'static [u8]) -> impl IntoResponse {
    let kind = match name.rsplit_once('.') {
        Some((_, "html")) => "text/html; charset=utf-8",
        Some((_, "css")) => "text/css; charset=utf-8",
        Some((_, "svg")) => "image/svg+xml",
        _ => "text/javascript; charset=utf-8",
    };
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/page")).unwrap();
        let mut names: Vec<String> =
            folder.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, FILES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        assert!(has("/") && has("/app.js") && !has("app.js") && !has("/../Cargo.toml") && !has("/v1/models"));
    }
}
