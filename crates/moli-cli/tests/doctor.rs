//! `moli doctor`.

mod support;

use serde_json::Value;
use support::{Ran, World};

#[test]
fn it_says_what_there_is_and_what_is_used() {
    let world = World::new();
    let text = world.run(&["doctor"]).ok();
    for part in ["processor ", "\ncores ", "\nmemory ", "\nGPU ", "\nsensors ", "\nMoli uses\n", "\nthreads "]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let nothing = text.contains("nothing found that would make it faster\n");
    assert_ne!(nothing, text.contains("what would make it faster\n- "), "{text}");
    assert!(text.lines().all(|line| !line.contains(char::is_control)), "{text}");
}

#[test]
fn as_json_it_is_one_object() {
    let json = World::new().run(&["doctor", "--json"]).json();
    let machine = &json["machine"];
    assert_eq!(machine["arch"], std::env::consts::ARCH);
    assert_eq!(json["uses"]["isa"], machine["isa"]);
    assert_eq!(json["uses"]["threads"], machine["default_threads"]);
    for sensor in ["frequency", "temperature", "energy", "throttling"] {
        let sensor = machine["sensors"][sensor].as_object().unwrap();
        assert!(sensor.contains_key("from") || sensor.contains_key("not"), "{sensor:?}");
    }
    for advice in json["advice"].as_array().unwrap() {
        assert!(advice["fact"].is_string() && advice["change"].is_string(), "{advice}");
    }
    assert!(json["gpus"].is_array() && json["notes"].is_array());
}

#[test]
fn a_lowered_instruction_set_is_seen() {
    let world = World::new();
    let lowered = Ran::new(world.command(&["doctor", "--json"]).env("MOLI_ISA", "scalar").output().unwrap());
    let json = lowered.json();
    assert_eq!(json["uses"]["isa"], "scalar");
    let best = json["machine"]["isas"].as_array().unwrap().last().unwrap().clone();
    let told = |advice: &Value| advice["command"] == "unset MOLI_ISA";
    let advised = json["advice"].as_array().unwrap().iter().any(told);
    assert_eq!(advised, best != "scalar", "{json}");
}

#[test]
fn wrong_usage_exits_with_2() {
    World::new().run(&["doctor", "more"]).fails(2, &["more"]);
}
