//! Reading a request's body: bounded in bytes and time, strict in every field.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::time::timeout;

use crate::app::App;
use crate::error::ApiError;
use crate::respond::Ignored;

/// A body that was read as JSON: every field of it known, or named in the response where the server is lenient.
#[derive(Debug)]
pub(crate) struct Strict<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Strict<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let ignored = request.extensions().get::<Ignored>().cloned().unwrap_or_default();
        let body = read(request, app).await?;
        if app.options.log_prompts {
            tracing::info!(target: "moli_server::prompts", body = %String::from_utf8_lossy(&body).escape_debug());
        }
        let (value, unknown) = parse(&body)?;
        if let Some(first) = unknown.first().filter(|_| !app.options.lenient) {
            let error = ApiError::invalid(first, format!("{first:?} is unknown or not supported"));
            return Err(ApiError { code: "unknown_field", ..error });
        }
        ignored.add(unknown);
        Ok(Self(value))
    }
}

/// All of a body.
async fn read(request: Request, app: &App) -> Result<Bytes, ApiError> {
    let encoding = request.headers().get(header::CONTENT_ENCODING);
    if let Some(encoding) = encoding.filter(|value| *value != "identity") {
        let message = format!("bodies are read as they are, and this one's encoding is {encoding:?}");
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message));
    }
    let limit = app.options.max_body;
    let too_large = |what: &str| {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("{what}, and may have {limit} bytes"),
        )
    };
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if let Some(declared) = declared.and_then(|text| text.parse::<u64>().ok()).filter(|&n| n > limit as u64) {
        return Err(too_large(&format!("the body has {declared} bytes")));
    }
    let body = Limited::new(request.into_body(), limit).collect();
    match timeout(app.options.body_timeout, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large("the body has more")),
        Ok(Err(error)) => {
            let message = format!("the body can't be read: {error}");
            Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_body", message))
        }
        Err(_) => {
            let message = format!("the body did not arrive in {} s", app.options.body_timeout.as_secs_f32());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
        }
    }
}

/// JSON and the paths of the fields that nobody read. Nesting is bounded by the parser.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<(T, Vec<String>), ApiError> {
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| {
        if unknown.len() < MAX_UNKNOWN {
            unknown.push(written(&path));
        }
    };
    if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        let message = "the body is to be a JSON object";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(serde_ignored::Deserializer::new(&mut json, &mut note));
    let value = value.map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        match path.as_str() {
            "." => ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message),
            _ => ApiError::invalid(&path, format!("{path}: {message}")),
        }
    })?;
    json.end().map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", error.to_string()))?;
    Ok((value, unknown))
}

/// A path as people write it: `messages[0].name`.
fn written(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", written(parent)),
        Path::Map { parent, key } => match written(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            written(parent)
        }
    }
}

/// Fields that nobody read, of which so many are told.
const MAX_UNKNOWN: usize = 16;

/// Reads an object, or null. A struct whose fields are all optional would also take a list of as many nulls.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    struct Object<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_map(self)
        }

        fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Self::Value, A::Error> {
            T::deserialize(MapAccessDeserializer::new(fields)).map(Some)
        }
    }

    deserializer.deserialize_option(Object(PhantomData))
}
