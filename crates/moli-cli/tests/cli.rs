//! The `moli` command end to end, with models of a hundred kilobytes.

mod support;

use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use support::{BOS, CONTEXT, IM_END, IM_START, Ran, World};

/// Greedy and short: the same words each time.
const GREEDY: [&str; 4] = ["--temp", "0", "-n", "12"];

fn run_arguments<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", model][..], &GREEDY, more].concat()
}

#[test]
fn version_names_the_instruction_set_and_threads() {
    let text = World::new().run(&["--version"]).ok();
    let start = concat!("moli ", env!("CARGO_PKG_VERSION"), " (");
    assert!(text.starts_with(start), "{text}");
    assert!(text.trim_end().ends_with("available)") && text.contains(" thread"), "{text}");
}

#[test]
fn wrong_usage_exits_with_2() {
    let world = World::new();
    let cases: &[&[&str]] = &[
        &["nonsense"],
        &["run", "-n", "0"],
        &["run", "-n", "many"],
        &["run", "-c", "-1"],
        &["run", "--threads", "0"],
        &["run", "--prefill-chunk", "0"],
        &["run", "--temp", "nan"],
        &["run", "--temp", "-1"],
        &["run", "--top-p", "1.5"],
        &["run", "--min-p", "inf"],
        &["run", "--repeat-penalty", "0"],
        &["run", "--repeat-last-n", "-2"],
        &["run", "--logit-bias", "7"],
        &["run", "--logit-bias", "7=nan"],
        &["run", "--seed", "-1"],
        &["run", "-p", "a", "-f", "b"],
        &["run", "-p", "a", "--raw", "--system", "b"],
        &["run", "-p", "a", "--logprobs", "3"],
        &["run", "-p", "a", "--regex", "b", "--json-schema", "{}"],
        &["run", "-p", "a", "--regex", "b", "--ignore-eos"],
        &["run", "-p", ""],
        &["run"],
        &["rm"],
        &["completions", "cmd.exe"],
    ];
    for arguments in cases {
        world.run(arguments).fails(2, &[]);
    }
    let help = world.run(&[]);
    assert_eq!((help.code, help.stdout.as_str()), (Some(2), ""));
    assert!(help.stderr.contains("Usage: moli"), "{help:?}");
}

#[test]
fn run_answers_from_an_argument_a_file_and_standard_input_alike() {
    let world = World::new();
    let model = world.chat_model();
    let file = world.file("prompt.txt", "hello\n");
    let asked = world.run(&run_arguments(&model, &["-p", "hello"]));
    assert_eq!(asked.stderr, "");
    let asked = asked.ok();
    assert!(!asked.is_empty());
    assert_eq!(world.run(&run_arguments(&model, &["-f", &file])).ok(), asked);
    assert_eq!(world.run_with(&run_arguments(&model, &[]), b"hello\n").ok(), asked);
    assert_eq!(world.run(&run_arguments(&model, &["-p", "hello", "--read"])).ok(), asked);
    for threads in ["1", "3"] {
        assert_eq!(world.run(&run_arguments(&model, &["-p", "hello", "-t", threads])).ok(), asked);
    }
    for chunk in ["1", "7"] {
        assert_eq!(world.run(&run_arguments(&model, &["-p", "hello", "--prefill-chunk", chunk])).ok(), asked);
    }
}

#[test]
fn a_session_goes_on_where_the_last_one_ended() {
    let world = World::new();
    let model = world.chat_model();
    let chat = world.path("chat.json");
    let (chat, kv) = (chat.to_str().unwrap(), world.path("chat.json.kv"));
    let ask = |prompt: &str| {
        let ran = world.run(&run_arguments(&model, &["-p", prompt, "--session", chat, "--json"]));
        let stderr = ran.stderr.clone();
        (ran.json(), stderr)
    };
    let cached = |answer: &Value| answer["usage"]["cached_tokens"].as_u64().unwrap();
    let (first, stderr) = ask("a question that is longer than a page of keys and values is");
    assert_eq!((cached(&first), stderr.as_str()), (0, ""));
    let before = [std::fs::read(chat).unwrap(), std::fs::read(&kv).unwrap()];
    let again = |kv_bytes: Option<&[u8]>| {
        std::fs::write(chat, &before[0]).unwrap();
        match kv_bytes {
            Some(bytes) => std::fs::write(&kv, bytes).unwrap(),
            None => std::fs::remove_file(&kv).unwrap(),
        }
        ask("and another one")
    };
    let (second, stderr) = again(Some(&before[1]));
    assert_eq!(stderr, "");
    let kept = cached(&second);
    assert!(kept >= 64 && kept % 32 == 0, "{second}");
    let asked = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(second["usage"]["prompt_tokens"].as_u64().unwrap() > asked + 20, "it has the first one in it");
    // Without the second file, or with a damaged one, the same is said and all of it computed.
    let (alone, stderr) = again(None);
    assert_eq!((cached(&alone), stderr.as_str(), &alone["text"]), (0, "", &second["text"]));
    let mut damaged = before[1].clone();
    damaged[200] ^= 1;
    let (alone, stderr) = again(Some(&damaged));
    assert_eq!((cached(&alone), &alone["text"]), (0, &second["text"]));
    assert!(stderr.contains("chat.json.kv: the file is damaged") && stderr.contains("read anew"), "{stderr}");
}

#[test]
fn sessions_of_plain_prompts_and_of_other_files() {
    let world = World::new();
    let (model, prompt) = (world.base_model(), "once upon a time there was a text of some length");
    let chat = world.path("chat.json");
    let chat = chat.to_str().unwrap();
    let run =
        |session: &str| world.run(&run_arguments(&model, &["--raw", "-p", prompt, "--session", session]));
    let expected = world.run(&run_arguments(&model, &["--raw", "-p", prompt])).ok();
    assert_eq!(run(chat).ok(), expected);
    assert_eq!(run(chat).ok(), expected);
    let notes = world.file("notes.txt", "my notes");
    run(&notes).fails(1, &["notes.txt", "is not a conversation"]);
    assert_eq!(std::fs::read(&notes).unwrap(), b"my notes");
    let nowhere = world.path("no/folder");
    let ran = run(nowhere.to_str().unwrap());
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), expected.as_str()));
    assert!(ran.stderr.contains("cannot write") && ran.stderr.contains("no/folder"), "{ran:?}");
}

/// The processors that this process may use, ascending.
#[cfg(target_os = "linux")]
fn allowed(status: &str) -> String {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.unwrap_or_default().trim().to_owned()
}

#[cfg(target_os = "linux")]
#[test]
fn cpu_affinity_holds_for_all_threads_that_compute() {
    let world = World::new();
    let model = world.chat_model();
    let mine = allowed(&std::fs::read_to_string("/proc/thread-self/status").unwrap());
    let first = mine.split(['-', ',']).next().unwrap();

    let plain = world.run(&run_arguments(&model, &["-p", "hello"])).ok();
    let ran = world.run(&run_arguments(&model, &["-p", "hello", "--stats", "--cpu-affinity", first]));
    assert!(ran.stderr.contains(", 1 threads"), "{ran:?}");
    assert_eq!(ran.ok(), plain);

    let endless =
        ["run", &model, "-p", "hello", "--ignore-eos", "-c", "0", "-t", "2", "--cpu-affinity", first];
    let mut child = world.command(&endless).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
    let mut threads = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        if status.lines().next().is_some_and(|name| name.contains("moli")) {
            threads.push(allowed(&status));
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(threads.len() >= 2 && threads.iter().all(|list| list == first), "{threads:?}, not {first}");
}

#[cfg(target_os = "linux")]
#[test]
fn cpu_affinity_to_what_is_not_there() {
    let world = World::new();
    let model = world.base_model();
    let run = |list: &str| world.run(&["run", &model, "--raw", "-p", "a", "-n", "1", "--cpu-affinity", list]);
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    for list in ["60000-60001", "0,60000-60001"] {
        run(list)
            .fails(1, &[list, "no processor 60000-60001", &format!("this machine has {}", online.trim())]);
    }
    for bad in ["", "a", "3-1", "0,", "-1"] {
        run(bad).fails(2, &["0-3,8"]);
    }
}

#[test]
fn run_json_is_one_object_with_finite_numbers() {
    let world = World::new();
    let model = world.chat_model();
    let more = ["-p", "hello", "--json", "--logprobs", "3", "--seed", "7", "--logit-bias", "65=-inf"];
    let answer = world.run(&run_arguments(&model, &more)).json();
    assert_eq!(answer["model"], model);
    assert_eq!(answer["seed"], 7);
    let tokens = answer["tokens"].as_array().unwrap();
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], tokens.len());
    assert_eq!(usage["cached_tokens"], 0);
    assert!(usage["prompt_tokens"].as_u64().unwrap() > 10);
    match answer["finish_reason"].as_str().unwrap() {
        "length" => assert_eq!(tokens.len(), 12),
        reason => assert_eq!(reason, "stop"),
    }
    for token in tokens {
        assert_ne!(token["id"], 65);
        assert!(token["text"].is_string());
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        let top = token["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert!(top.iter().all(|pair| pair[0].is_u64() && pair[1].is_f64()), "{token}");
    }
    for time in ["load_ms", "ttft_ms", "prompt_per_second", "decode_per_second"] {
        assert!(answer["timings"][time].as_f64().unwrap() >= 0.0, "{time}");
    }
    let plain = ["-p", "hello", "--seed", "7", "--logit-bias", "65=-inf"];
    assert_eq!(answer["text"], world.run(&run_arguments(&model, &plain)).ok());
}

#[test]
fn run_repeats_itself_with_a_seed_and_tells_the_one_that_it_chose() {
    let world = World::new();
    let model = world.chat_model();
    let ask = |more: &[&str]| world.run(&[&["run", &model, "-p", "hello", "-n", "40"], more].concat());
    let first = ask(&["--json"]).json();
    let seed = first["seed"].to_string();
    assert_eq!(first["text"], ask(&["--seed", &seed]).ok());
    assert!(ask(&["--seed", "5", "--stats"]).stderr.contains("seed: 5"));
}

#[test]
fn run_stops_where_it_is_told() {
    let world = World::new();
    let model = world.base_model();
    let whole = world.run(&run_arguments(&model, &["-p", "hello", "--raw"])).ok();
    let stop: String = whole.chars().skip(3).take(2).collect();
    let cut = world.run(&run_arguments(&model, &["-p", "hello", "--raw", "--stop", &stop, "--json"])).json();
    assert_eq!(cut["finish_reason"], "stop");
    assert_eq!(cut["text"], whole.split_once(&stop).unwrap().0);
    // Every token but the end's is forbidden by a bias that dwarfs it.
    let bias = format!("{IM_END}=1e6");
    let ended = ["-p", "hello", "--raw", "--json", "--logit-bias", &bias];
    let answer = world.run(&run_arguments(&model, &ended)).json();
    assert_eq!((&answer["finish_reason"], &answer["text"]), (&Value::from("stop"), &Value::from("")));
    let answer = world.run(&run_arguments(&model, &[&ended[..], &["--ignore-eos"]].concat())).json();
    assert_eq!(answer["finish_reason"], "length");
}

#[test]
fn a_model_without_a_template_says_so_once() {
    let world = World::new();
    let model = world.base_model();
    let told = world.run(&run_arguments(&model, &["-p", "hello"]));
    assert_eq!(told.stderr.matches("no chat template").count(), 1, "{told:?}");
    let raw = world.run(&run_arguments(&model, &["-p", "hello", "--raw"]));
    assert_eq!(raw.stderr, "");
    assert_eq!(told.ok(), raw.ok());
    world
        .run(&run_arguments(&model, &["-p", "hello", "--system", "x"]))
        .fails(1, &["--system", "chat template"]);
    // With a template, raw and not are different prompts.
    let chat = world.chat_model();
    let tokens = |more: &[&str]| {
        let arguments = [&["-p", "hello", "--json"], more].concat();
        world.run(&run_arguments(&chat, &arguments)).json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let (templated, instructed, raw) = (tokens(&[]), tokens(&["--system", "x"]), tokens(&["--raw"]));
    assert!(raw < templated && templated < instructed, "{raw} {templated} {instructed}");
}

#[test]
fn stats_go_to_standard_error() {
    let world = World::new();
    let model = world.chat_model();
    let ran = world.run(&run_arguments(&model, &["-p", "hello", "--stats"]));
    assert!(ran.stderr.contains("tokens/s") && ran.stderr.contains("load: "), "{ran:?}");
    assert!(!ran.stdout.contains("tokens/s"));
}

#[test]
fn guesses_change_nothing_and_are_counted() {
    let world = World::new();
    let model = world.chat_model();
    let run =
        |more: &[&str]| world.run(&run_arguments(&model, &[&["-p", "hello", "--stats"], more].concat()));
    let plain = run(&["--no-speculation"]);
    assert!(!plain.stderr.contains("guesses"), "{plain:?}");
    // A model agrees with itself.
    let guessed = run(&["--draft", &model]);
    assert!(guessed.stderr.contains(" guesses were right)"), "{guessed:?}");
    assert_eq!(guessed.ok(), plain.ok());

    run(&["--draft", &model, "--no-speculation"]).fails(2, &["--draft", "--no-speculation"]);
    run(&["--draft", "./missing.gguf"]).fails(1, &["missing.gguf"]);
    let notes = world.file("notes.txt", "These are my notes, and they are long enough for a header.");
    run(&["--draft", &notes]).fails(1, &["draft model", "notes.txt", "GGUF"]);
    let other = world.model("other.gguf", |file| {
        let mut tokens: Vec<String> = (0..258).map(|i| format!("t{i}")).collect();
        tokens.push("<|im_end|>".to_owned());
        file.meta("tokenizer.ggml.tokens", tokens);
    });
    run(&["--draft", &other]).fails(1, &["vocabulary", "token 0", "t0"]);
}

#[test]
fn things_that_are_not_models_are_named() {
    let world = World::new();
    let text = world.file("notes.txt", "These are my notes, and they are long enough for a header.");
    let empty = world.file("empty.gguf", "");
    let folder = world.path("folder");
    std::fs::create_dir(&folder).unwrap();
    for command in ["run", "inspect", "tokenize"] {
        let with = |model: &str| world.run_with(&[command, model], b"hello");
        with(&text).fails(1, &["notes.txt", "GGUF"]);
        with(&empty).fails(1, &["empty.gguf", "empty"]);
        with(folder.to_str().unwrap()).fails(1, &["folder"]);
        with("./missing.gguf").fails(1, &["missing.gguf"]);
        with("smollm2-135m-instruc").fails(1, &["smollm2-135m-instruc", "did you mean"]);
        with("why is the sky blue").fails(1, &["hint: ", "-p"]);
    }
}

#[test]
fn a_truncated_model_is_named() {
    let world = World::new();
    let model = world.chat_model();
    let bytes = std::fs::read(&model).unwrap();
    let cut = world.file("cut.gguf", &bytes[..bytes.len() / 2]);
    world.run(&["run", &cut, "-p", "hello"]).fails(1, &["cut.gguf"]);
}

#[test]
fn prompts_that_cannot_be_answered() {
    let world = World::new();
    let model = world.chat_model();
    let not_text = world.file("prompt.bin", b"caf\xe9");
    world.run_with(&["run", &model], b"caf\xe9").fails(1, &["standard input", "UTF-8", "byte 3"]);
    world.run(&["run", &model, "-f", &not_text]).fails(1, &["prompt.bin", "UTF-8"]);
    world.run(&["run", &model, "-f", "none.txt"]).fails(1, &["none.txt"]);
    world.run(&["run", &model, "-f", "."]).fails(1, &["folder"]);
    world.run_with(&["run", &model], b"").fails(2, &["prompt is empty"]);
    world.run_with(&["run", &model], b"\n").fails(2, &["prompt is empty"]);
    world.run(&["run", &model, "--json", "-p", ""]).fails(2, &["prompt is empty"]);
}

#[test]
fn the_context_is_a_limit_in_words() {
    let world = World::new();
    let model = world.chat_model();
    let long = "x".repeat(100);
    world.run(&["run", &model, "-p", &long, "-c", "64"]).fails(1, &["64", "hint: ", "-c"]);
    let beyond = (CONTEXT + 1).to_string();
    world.run(&["run", &model, "-p", "a", "-c", &beyond]).fails(1, &[&beyond, &CONTEXT.to_string()]);
    let answer = world.run(&["run", &model, "-p", "a", "-c", "64", "--ignore-eos", "--json"]).json();
    assert_eq!(answer["finish_reason"], "context");
    let all = world.run(&["run", &model, "-p", "a", "-c", "0", "-n", "2", "--ignore-eos"]);
    assert!(!all.ok().is_empty());
}

#[test]
fn tokenize_prints_ids_or_lines() {
    let world = World::new();
    let model = world.base_model();
    let ids = |text: &str, more: &[&str]| {
        let answer = world.run(&[&["tokenize", &model, "-p", text, "--json"], more].concat()).json();
        answer["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ids("hello", &[]), b"hello".map(u64::from));
    assert_eq!(ids("<|im_start|>a", &["--special"]), [BOS, IM_START, u32::from(b'a')].map(u64::from));
    assert!(ids("<|im_start|>a", &[]).len() > 10);
    let lines = world.run_with(&["tokenize", &model], b"hi\n").ok();
    assert_eq!(lines, "   104  'h'\n   105  'i'\n    10  '\\n'\n");
    assert_eq!(world.run_with(&["tokenize", &model, "--json"], b"").json()["ids"], Value::Array(Vec::new()));
}

#[test]
fn inspect_says_what_a_file_is() {
    let world = World::new();
    let model = world.model("named.gguf", |file| file.meta("general.name", "tiny\u{1b}[2J\nsecond line"));
    let text = world.run(&["inspect", &model, "-c", "1000"]).ok();
    assert!(!text.contains('\u{1b}'), "{text}");
    for part in ["tiny\\u{1b}[2J\\nsecond line", "llama", "Q8_0", "65536 tokens", "runs here      yes"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = world.run(&["inspect", &model, "-c", "1000", "--json", "--tensors"]).json();
    assert_eq!(json["supported"], true);
    assert_eq!(json["reason"], Value::Null);
    assert_eq!(json["chat_template"], false);
    assert_eq!(json["config"]["layers"], 2);
    assert_eq!(json["config"]["kv_heads"], 2);
    let memory = &json["memory"];
    let parts = memory["parts"].as_array().unwrap();
    let part =
        |name: &str| parts.iter().find(|part| part["name"] == name).unwrap()["bytes"].as_u64().unwrap();
    // 2 layers, keys and values, 2 heads of 16 halves, whole pages.
    assert_eq!(part("keys and values") / (2 * 2 * 32 * 2) / 32, 1000u64.div_ceil(32));
    assert_eq!(part("weights"), json["size"].as_u64().unwrap());
    let total = parts.iter().map(|part| part["bytes"].as_u64().unwrap()).sum::<u64>();
    assert_eq!((&memory["total"], &memory["context"]), (&Value::from(total), &Value::from(1000)));
    assert_eq!((&memory["kv_type"], &json["memory_error"]), (&Value::from("f16"), &Value::Null));
    assert_eq!(json["tensors"].as_array().unwrap().len(), 20);
    assert_eq!(world.run(&["inspect", &model, "--tensors"]).ok().matches("token_embd.weight").count(), 1);
}

#[test]
fn inspect_says_what_fits_a_budget() {
    let world = World::new();
    let model = &world.base_model();
    let memory = |more: &[&str]| {
        let json = world.run(&[&["inspect", model, "--json"], more].concat()).json();
        (json["memory"].clone(), json["memory_error"].clone())
    };
    let (whole, _) = memory(&["--sessions", "2"]);
    let total = whole["total"].as_u64().unwrap();
    assert!(whole["prefix_cache"].as_u64().unwrap() > 0 && whole["changes"] == Value::Array(Vec::new()));

    // A tenth of a megabyte less than all: the prefix cache gives it.
    let budget = format!("{}", total - 100_000);
    let (fits, error) = memory(&["--sessions", "2", "--mem-budget", &budget]);
    assert_eq!((&fits["limit"], &error), (&Value::from(total - 100_000), &Value::Null));
    assert!(fits["total"].as_u64().unwrap() <= total - 100_000);
    assert!(fits["changes"][0].as_str().unwrap().contains("prefix cache"), "{fits}");
    let text = world.run(&["inspect", model, "--sessions", "2", "--mem-budget", &budget]).ok();
    for part in ["keys and values", "tokenizer", "to fit: ", "of the memory budget of"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let (q8, _) = memory(&["--kv-type", "q8_0"]);
    assert!(q8["total"].as_u64().unwrap() < memory(&[]).0["total"].as_u64().unwrap());
    let (all, error) = memory(&["--mem-budget", "1M"]);
    assert!(error.as_str().unwrap().contains("memory budget of 1.0 MB"), "{error}");
    assert_eq!(all["limit"], Value::Null, "the plan is shown all the same");
}

#[test]
fn run_holds_to_a_memory_budget() {
    let world = World::new();
    let model = &world.base_model();
    let ask = |more: &[&str]| world.run(&[&["run", model, "-p", "a", "--raw", "-n", "1"], more].concat());
    ask(&["--mem-budget", "1M"]).fails(1, &["the model needs", "memory budget of 1.0 MB", "moli inspect"]);
    ask(&["--mem-budget", "8G", "-c", "64"]).ok();
    let stats = ask(&["--stats", "-c", "64"]);
    assert!(stats.stderr.contains("MB planned"), "{stats:?}");
    // What the context that is asked for takes is not taken from it in silence.
    let json = world.run(&["inspect", model, "--json", "-c", "65536"]).json();
    let budget = (json["memory"]["total"].as_u64().unwrap() - 1_000_000).to_string();
    let fixed = ["--kv-type", "f16", "-c", "65536", "--mem-budget", budget.as_str()];
    ask(&fixed).fails(1, &["tokens with keys and values in q8_0 would fit"]);
    for bad in ["abc", "-5", "1e400", "0", "", "101%", "99999999999999999999"] {
        ask(&["--mem-budget", bad]).fails(2, &["--mem-budget"]);
    }
    ask(&["--kv-type", "q4_0"]).fails(2, &["--kv-type"]);
    ask(&["--prefix-cache", "10%"]).fails(2, &["--prefix-cache"]);
}

#[test]
fn inspect_says_why_a_file_does_not_run() {
    let world = World::new();
    let path = &world.model("other.gguf", |file| file.meta("general.architecture", "mamba\u{1b}[31m"));
    let text = world.run(&["inspect", path]).ok();
    assert!(text.contains("runs here      no: ") && text.contains("mamba\\u{1b}[31m"), "{text}");
    assert!(!text.contains('\u{1b}'));
    let json = world.run(&["inspect", path, "--json"]).json();
    assert_eq!((&json["supported"], &json["config"]), (&Value::Bool(false), &Value::Null));
    assert!(json["reason"].as_str().unwrap().contains("mamba"));
    world.run(&["run", path, "-p", "a"]).fails(1, &["mamba"]);
}

#[test]
fn perplexity_is_a_number() {
    let world = World::new();
    let model = world.base_model();
    let file = world.file("text.txt", "the quick brown fox jumps over the lazy dog. ".repeat(20));
    let answer = world.run(&["perplexity", &model, "-f", &file, "-c", "64", "--json"]).json();
    assert!(answer["perplexity"].as_f64().unwrap() > 1.0, "{answer}");
    assert!(answer["tokens"].as_u64().unwrap() > 100, "{answer}");
    let plain = world.run(&["perplexity", &model, "-f", &file, "-c", "64"]).ok();
    assert!(plain.contains("perplexity"), "{plain}");
    let short = world.file("short.txt", "too short");
    world.run(&["perplexity", &model, "-f", &short]).fails(1, &["tokens"]);
    world.run(&["perplexity", &model, "-f", "none.txt"]).fails(1, &["none.txt"]);
    world.run(&["perplexity", &model, "-f", &file, "-c", "2"]).fails(2, &[]);
}

#[test]
fn completions_for_every_shell() {
    let world = World::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(world.run(&["completions", shell]).ok().contains("perplexity"), "{shell}");
    }
}

#[test]
fn a_model_of_the_users_own_catalogue_is_pulled_listed_run_and_removed() {
    let world = World::new();
    let model = world.chat_model();
    let entry = format!(
        "name = \"mine\"\ndescription = \"my\\u001b[2J model\"\nlicence.name = \"MIT\"\n\
         [[files]]\nname = \"mine.gguf\"\n[[sources]]\nkind = \"path\"\npaths = [{model:?}]\n"
    );
    world.file("config/models/mine.toml", entry);
    let present = || {
        let list = world.run(&["list", "--json"]).json();
        let models = list["models"].as_array().unwrap();
        assert!(models.iter().any(|m| m["name"] == "smollm2-135m-instruct" && m["present"] == false));
        models.iter().find(|m| m["name"] == "mine").unwrap()["present"].as_bool().unwrap()
    };
    assert!(!present());
    let first = world.run(&run_arguments("mine", &["-p", "hello"]));
    assert!(first.stderr.contains("mine is not here yet"), "{first:?}");
    let second = world.run(&run_arguments("mine", &["-p", "hello"]));
    assert_eq!(second.stderr, "");
    assert_eq!(first.ok(), second.ok());
    assert!(present());
    let table = world.run(&["list"]).ok();
    assert!(table.contains("mine") && !table.contains('\u{1b}'), "{table}");
    let path = world.run(&["pull", "mine"]).ok();
    assert!(std::path::Path::new(path.trim_end()).is_file(), "{path}");
    let removed = world.run(&["rm", "mine"]);
    assert!(removed.stderr.contains("removed mine"), "{removed:?}");
    assert!(!present());
    world.run(&["rm", "mine"]).fails(1, &["mine"]);
}

#[test]
fn a_model_that_cannot_be_had_is_an_error_with_each_source() {
    let world = World::new();
    let told = world.run(&["pull", "smollm2-135m-instruct"]).fails(1, &["smollm2-135m-instruct", "hint: "]);
    assert!(told.contains("MOLI_OFFLINE"), "{told}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let world = World::new();
    let model = world.chat_model();
    let mut child =
        world.command(&["run", &model, "-p", "hello", "--ignore-eos", "-c", "0"]).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    // The other end of the pipe is closed now.
    let ran = Ran::new(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
}

#[cfg(unix)]
#[test]
fn ctrl_c_prints_what_is_there_and_exits_with_130() {
    let world = World::new();
    let model = world.chat_model();
    let interrupt = |id: u32| {
        let status = std::process::Command::new("kill").args(["-INT", &id.to_string()]).status().unwrap();
        assert!(status.success());
    };
    let endless = ["run", &model, "-p", "hello", "--ignore-eos", "-c", "0"];

    let mut child = world.command(&endless).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    interrupt(child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");

    let child = world.command(&[&endless[..], &["--json"]].concat()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    interrupt(child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["finish_reason"], "cancelled");
    assert!(!answer["tokens"].as_array().unwrap().is_empty());
}

#[test]
fn a_broken_chat_template_spoils_chats_only() {
    let world = World::new();
    let model = world.model("broken.gguf", |file| {
        file.meta("tokenizer.chat_template", "{% nonsense %}");
        // Without control tokens the model is of no family whose format is known.
        let tokens = usize::try_from(IM_END).unwrap() + 1;
        file.meta("tokenizer.ggml.token_type", vec![1i32; tokens]);
    });
    let raw = world.run(&["run", &model, "--raw", "-p", "abc", "-n", "2"]);
    assert_eq!(raw.code, Some(0), "{}", raw.stderr);
    let chat = world.run(&["run", &model, "-p", "abc", "-n", "2"]);
    assert_eq!(chat.code, Some(1));
    assert!(chat.stderr.contains("chat template can't be used"), "{}", chat.stderr);
    let inspected = world.run(&["inspect", &model]);
    assert!(inspected.stdout.contains("cannot be used"), "{}", inspected.stdout);
    assert!(inspected.stdout.contains("runs here      yes"), "{}", inspected.stdout);
}

#[test]
fn a_template_that_is_not_the_files_own_is_told() {
    let world = World::new();
    let missing = world.model("chat.gguf", |file| file.meta("general.name", "Tiny Chat"));
    let broken = world.model("broken.gguf", |file| file.meta("tokenizer.chat_template", "{% nonsense %}"));
    for (model, why) in
        [(&missing, "since the file has none"), (&broken, "since the file's own can't be used")]
    {
        let chat = world.run(&run_arguments(model, &["-p", "abc"]));
        assert_eq!(chat.code, Some(0), "{}", chat.stderr);
        assert!(chat.stderr.contains(&format!("chat template: chatml, {why}")), "{}", chat.stderr);
        let inspected = world.run(&["inspect", model]);
        assert!(inspected.stdout.contains(&format!("chatml, {why}")), "{}", inspected.stdout);
        let raw = world.run(&run_arguments(model, &["-p", "abc", "--raw"]));
        assert_eq!(raw.stderr, "");
    }
}

#[test]
fn a_context_beyond_counting_is_no_crash() {
    let world = World::new();
    let model = world.base_model();
    let ran = world.run(&["inspect", &model, "-c", "18446744073709551615"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(!ran.stdout.contains("keys and values 0 B"), "{}", ran.stdout);
}

#[test]
fn rm_leaves_the_users_own_files_alone() {
    let world = World::new();
    let model = world.base_model();
    let ran = world.run(&["rm", &model]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("a file of yours"), "{}", ran.stderr);
    assert!(std::path::Path::new(&model).exists());
}

#[test]
fn an_answer_follows_its_grammar() {
    let world = World::new();
    let model = world.chat_model();
    let schema = world.file("schema.json", r#"{"enum": ["yes", "no"]}"#);
    let gbnf = world.file("vote.gbnf", "root ::= (\"yes\" | \"no\") \"!\"\n");
    let lark = world.file("vote.lark", "start: \"yes\" | \"no\"\n");
    let answers = [
        (["--regex", "(yes|no)\\?"], ["yes?", "no?"]),
        (["--json-schema", r#"{"enum": ["yes", "no"]}"#], ["\"yes\"", "\"no\""]),
        (["--json-schema", &format!("@{schema}")], ["\"yes\"", "\"no\""]),
        (["--grammar", &gbnf], ["yes!", "no!"]),
        (["--grammar", &lark], ["yes", "no"]),
    ];
    for (grammar, allowed) in answers {
        let said = world.run(&run_arguments(&model, &[&["-p", "hello"][..], &grammar].concat())).ok();
        assert!(allowed.contains(&said.trim_end()), "{grammar:?}: {said}");
    }
    let run =
        |grammar: [&str; 2]| world.run(&run_arguments(&model, &[&["-p", "hello"][..], &grammar].concat()));
    run(["--regex", "("]).fails(1, &["regular expression"]);
    run(["--json-schema", "{\"type\": 3}"]).fails(1, &["JSON schema"]);
    run(["--json-schema", "@nowhere.json"]).fails(1, &["nowhere.json"]);
}
