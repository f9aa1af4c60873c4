//! The messages of a conversation.

use std::collections::VecDeque;

use moli_engine::{Message, ToolCall};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ApiError;

/// A message of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ollama::Message)]
pub(crate) struct GivenMessage {
    role: Role,
    content: Option<String>,
    /// What the assistant thought.
    thinking: Option<String>,
    /// Not supported: the list may only be empty.
    images: Option<Vec<String>>,
    /// The tools that the assistant called.
    tool_calls: Option<Vec<GivenCall>>,
    /// The tool whose answer this is.
    tool_name: Option<String>,
    /// The call that this answers; where it is left out, the first unanswered one of the tool.
    tool_call_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ollama::Role)]
enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// A call of a tool.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ollama::ToolCall)]
struct GivenCall {
    id: Option<String>,
    #[serde(rename = "type")]
    _kind: Option<CallKind>,
    function: GivenFunction,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ollama::ToolCallKind)]
enum CallKind {
    Function,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ollama::CalledFunction)]
struct GivenFunction {
    /// Its place among the calls, which the list tells.
    #[serde(rename = "index")]
    _index: Option<usize>,
    name: String,
    #[serde(default)]
    #[schema(value_type = Object)]
    arguments: Map<String, Value>,
}

/// Messages as the chat template sees them. Calls that have no ids get some: templates of several families want them.
pub(crate) fn messages(given: Vec<GivenMessage>) -> Result<Vec<Message>, ApiError> {
    let mut calls = Calls::default();
    let all = given.into_iter().enumerate();
    all.map(|(index, message)| message.read(&format!("messages[{index}]"), &mut calls)).collect()
}

/// The calls of a conversation that were not answered so far, and how many there were.
#[derive(Debug, Default)]
struct Calls {
    open: VecDeque<(String, String)>,
    count: usize,
}

impl Calls {
    /// Takes note of a call.
    fn call(&mut self, call: GivenCall) -> ToolCall {
        self.count += 1;
        // Nine characters: Mistral's templates take no other ids.
        let made = || format!("call{:05}", self.count);
        let id = call.id.filter(|id| !id.is_empty()).unwrap_or_else(made);
        let name = call.function.name;
        self.open.push_back((id.clone(), name.clone()));
        ToolCall { id, name, arguments: call.function.arguments }
    }

    /// The id and the name of the call that a message answers.
    fn answer(&mut self, id: Option<String>, name: Option<String>) -> (Option<String>, Option<String>) {
        let place = match (&id, &name) {
            (Some(id), _) => self.open.iter().position(|(open, _)| open == id),
            (None, Some(name)) => self.open.iter().position(|(_, open)| open == name),
            (None, None) => Some(0),
        };
        match place.and_then(|place| self.open.remove(place)) {
            Some((open, called)) => (Some(open), name.or(Some(called))),
            None => (id, name),
        }
    }
}

impl GivenMessage {
    /// `at`: where it is in the request.
    fn read(self, at: &str, calls: &mut Calls) -> Result<Message, ApiError> {
        let role = match self.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let tool_calls = self.tool_calls.unwrap_or_default();
        if self.images.is_some_and(|images| !images.is_empty()) {
            let field = format!("{at}.images");
            return Err(ApiError::unsupported(field.clone(), format!("{field} are not supported")));
        }
        let text = |text: Option<String>| text.filter(|text| !text.is_empty());
        let thinking = text(self.thinking);
        let (tool_name, tool_call_id) = (text(self.tool_name), text(self.tool_call_id));
        for (set, name, only) in [
            (!tool_calls.is_empty(), "tool_calls", Role::Assistant),
            (thinking.is_some(), "thinking", Role::Assistant),
            (tool_name.is_some(), "tool_name", Role::Tool),
            (tool_call_id.is_some(), "tool_call_id", Role::Tool),
        ] {
            if set && self.role != only {
                let message = format!("{at} has {name}, which a message of the role {role} can't have");
                return Err(ApiError::invalid(format!("{at}.{name}"), message));
            }
        }
        let (tool_call_id, name) = match self.role {
            Role::Tool => calls.answer(tool_call_id, tool_name),
            _ => (None, None),
        };
        Ok(Message {
            role: role.to_owned(),
            content: self.content.unwrap_or_default(),
            reasoning_content: thinking,
            tool_calls: tool_calls.into_iter().map(|call| calls.call(call)).collect(),
            tool_call_id,
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: Value) -> Result<Vec<Message>, ApiError> {
        messages(serde_json::from_value(given).unwrap())
    }

    #[test]
    fn calls_without_ids_are_answered_in_order() {
        let call = |name: &str| serde_json::json!({"function": {"name": name, "arguments": {"a": 1}}});
        let read = read(serde_json::json!([
            {"role": "assistant", "tool_calls": [call("one"), call("two"), call("one")]},
            {"role": "tool", "content": "2", "tool_name": "two"},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "3", "tool_name": "one"},
            {"role": "tool", "content": "4", "tool_name": "three"},
        ]))
        .unwrap();
        let ids: Vec<&str> = read[0].tool_calls.iter().map(|call| call.id.as_str()).collect();
        assert_eq!(ids, ["call00001", "call00002", "call00003"]);
        let answered: Vec<_> =
            read[1..].iter().map(|m| (m.tool_call_id.as_deref(), m.name.as_deref())).collect();
        assert_eq!(
            answered,
            [
                (Some(ids[1]), Some("two")),
                (Some(ids[0]), Some("one")),
                (Some(ids[2]), Some("one")),
                (None, Some("three"))
            ]
        );
    }

    #[test]
    fn what_a_role_cannot_have_is_named() {
        for (message, field) in [
            (serde_json::json!({"role": "user", "content": "", "images": ["aGk="]}), "images"),
            (serde_json::json!({"role": "user", "thinking": "hm"}), "thinking"),
            (serde_json::json!({"role": "assistant", "tool_name": "x"}), "tool_name"),
            (serde_json::json!({"role": "tool", "tool_calls": [{"function": {"name": "x"}}]}), "tool_calls"),
        ] {
            let error = read(serde_json::json!([message])).unwrap_err();
            assert_eq!(error.param, Some(format!("messages[0].{field}")));
        }
    }
}
