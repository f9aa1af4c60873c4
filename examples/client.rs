//! A conversation with a server, its answers as they come: `moli serve`, and then
//! `cargo run --release --example client -p moli -- http://127.0.0.1:8080`. MOLI_API_KEY has the key, if it wants one.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};

use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:8080".to_owned());
    let key = std::env::var("MOLI_API_KEY").unwrap_or_default();
    // What the server says of a mistake is in the body.
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();

    let models =
        agent.get(format!("{server}/v1/models")).header("Authorization", format!("Bearer {key}")).call()?;
    let models: Value = serde_json::from_reader(models.into_body().into_reader())?;
    let model = models["data"][0]["id"].as_str().ok_or_else(|| models["error"].to_string())?;
    println!("[{model}]");

    let mut messages = Vec::new();
    for line in std::io::stdin().lines() {
        messages.push(json!({"role": "user", "content": line?}));
        let request = json!({"model": model, "messages": messages, "stream": true});
        let response = agent
            .post(format!("{server}/v1/chat/completions"))
            .header("Authorization", format!("Bearer {key}"))
            .header("Content-Type", "application/json")
            .send(request.to_string())?;
        if response.status() != 200 {
            return Err(response.into_body().read_to_string()?.into());
        }
        let mut answer = String::new();
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line?;
            let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { continue };
            let chunk: Value = serde_json::from_str(data)?;
            let text = chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            print!("{text}");
            std::io::stdout().flush()?;
            answer.push_str(text);
        }
        println!();
        messages.push(json!({"role": "assistant", "content": answer}));
    }
    Ok(())
}
