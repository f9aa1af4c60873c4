//! Telling a model whether to think, for APIs that know yes and no.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::models::Lease;
use crate::openai::Effort;

/// Tells a model's chat template. A model that thinks as it likes is left to it; what it thinks is told apart in any case.
///
/// # Errors
/// One about the field `at` where it is to think and can't.
pub(crate) fn think(
    on: bool,
    lease: &Lease,
    variables: &mut Map<String, Value>,
    at: &str,
) -> Result<(), ApiError> {
    if !on {
        return Effort::None.tell(lease, variables);
    }
    let template = lease.engine.chat_template()?;
    if template.is_some_and(|template| template.source().contains("enable_thinking")) {
        variables.insert("enable_thinking".to_owned(), true.into());
    } else if template.is_none_or(|template| {
        template.reasoning_tags().is_none() && !template.source().contains("reasoning_effort")
    }) {
        let message = format!("{at} asks the model to think, and {:?} does not", lease.spec().name);
        return Err(ApiError::unsupported(at, message));
    }
    Ok(())
}
