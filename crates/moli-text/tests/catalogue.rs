//! Which template a model gets: its own, its family's, or none, and that one can tell.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::Fixture;
use moli_text::{ChatTemplate, Message, RenderOptions, TemplateOrigin, TextError};

/// A model of this name with these control tokens, and `<s>` and `</s>` for BOS and EOS.
fn model(name: &'static str, tokens: &[&str]) -> Fixture<'static> {
    let fixture = Fixture::sentence_piece().set("general.name", name);
    tokens.iter().fold(fixture, |fixture, token| fixture.token(token, 3))
}

fn chosen(fixture: &Fixture<'_>) -> Result<Option<ChatTemplate>, TextError> {
    ChatTemplate::for_model(fixture.gguf().metadata(), &fixture.load().unwrap())
}

fn family(fixture: &Fixture<'_>) -> Option<&'static str> {
    match chosen(fixture).unwrap()?.origin() {
        TemplateOrigin::Missing { family } => Some(family),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_family() {
    let messages = ["system Be brief.", "user Hi", "assistant Hello!", "user Bye"]
        .map(|line| line.split_once(' ').map(|(role, text)| Message::new(role, text)).unwrap());
    for (name, tokens, expected, prompt) in [
        (
            "Some Chat",
            &["<|im_start|>", "<|im_end|>"][..],
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "Llama 3.1 8B Instruct",
            &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "Llama-4-Scout-Instruct",
            &["<|header_start|>", "<|header_end|>", "<|eot|>"],
            "llama4",
            "<s><|header_start|>system<|header_end|>\n\nBe brief.<|eot|><|header_start|>user<|header_end|>\n\nHi<|eot|><|header_start|>assistant<|header_end|>\n\nHello!<|eot|><|header_start|>user<|header_end|>\n\nBye<|eot|><|header_start|>assistant<|header_end|>\n\n",
        ),
        (
            "Granite 3.0 Instruct",
            &["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"],
            "granite",
            "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>Hello!<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Bye<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
        (
            "aya it",
            &["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"],
            "command-r",
            "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello!<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Bye<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        ),
        (
            "gemma-2b-it",
            &["<start_of_turn>", "<end_of_turn>"],
            "gemma",
            "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "DeepSeek Chat",
            &["<｜User｜>", "<｜Assistant｜>"],
            "deepseek",
            "<s>Be brief.<｜User｜>Hi<｜Assistant｜>Hello!</s><｜User｜>Bye<｜Assistant｜>",
        ),
        (
            "glm-4-9b-chat",
            &["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"],
            "glm4",
            "[gMASK]<sop><|system|>\nBe brief.<|user|>\nHi<|assistant|>\nHello!<|user|>\nBye<|assistant|>\n",
        ),
        (
            "phi-4 chat",
            &["<|im_start|>", "<|im_sep|>", "<|im_end|>"],
            "phi4",
            "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>Hello!<|im_end|><|im_start|>user<|im_sep|>Bye<|im_end|><|im_start|>assistant<|im_sep|>",
        ),
        (
            "Phi 3 mini 4k instruct",
            &["<|user|>", "<|assistant|>", "<|end|>"],
            "phi3",
            "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n",
        ),
        (
            "Mistral Small Instruct",
            &["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"],
            "mistral-v7",
            "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi[/INST]Hello!</s>[INST]Bye[/INST]",
        ),
        (
            "Mistral Nemo Instruct",
            &["[INST]", "[/INST]"],
            "mistral-v3",
            "<s>[INST]Hi[/INST]Hello!</s>[INST]Be brief.\n\nBye[/INST]",
        ),
        (
            "mistralai_mistral-7b-instruct-v0.1",
            &[],
            "mistral",
            "<s>[INST] Be brief.\n\nHi [/INST] Hello!</s>[INST] Bye [/INST]",
        ),
        (
            "zephyr-7b-beta",
            &[],
            "zephyr",
            "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
        ),
        ("Vicuna 7B", &[], "vicuna", "Be brief.\n\nUSER: Hi\nASSISTANT: Hello!</s>\nUSER: Bye\nASSISTANT:"),
        (
            "alpaca",
            &[],
            "alpaca",
            "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello!</s>\n\n### Instruction:\nBye\n\n### Response:\n",
        ),
        (
            "Llama-2-7b-chat-hf",
            &[],
            "llama2",
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Bye [/INST]",
        ),
    ] {
        let fixture = model(name, tokens);
        let template = chosen(&fixture).unwrap().unwrap();
        assert_eq!(family(&fixture), Some(expected), "{name}");
        let rendered =
            template.render(&fixture.load().unwrap(), &messages, &RenderOptions::default()).unwrap();
        assert_eq!(rendered.text(), prompt, "{name}");
    }
}

#[test]
fn a_base_model_has_no_template() {
    let tokens = &["<|im_start|>", "<|im_end|>"];
    assert_eq!(family(&model("Qwen2.5 0.5B", tokens)), None);
    assert_eq!(family(&model("Qwen2.5 0.5B", tokens).set("general.finetune", "Instruct")), Some("chatml"));
    // A chat model of a family that isn't known, and one whose control tokens are ordinary ones.
    assert_eq!(family(&model("Some Chat", &[])), None);
    let mut fixture = model("Some Chat", tokens);
    fixture.tokens.iter_mut().filter(|(token, _)| token == "<|im_start|>").for_each(|(_, kind)| *kind = 1);
    assert_eq!(family(&fixture), None);
}

#[test]
fn a_broken_template_is_replaced_and_the_reason_is_told() {
    let tokens = &["<|im_start|>", "<|im_end|>"];
    for broken in ["{% nonsense %}", "{{ messages[0].content | no_such_filter }}", "{{ no_such_function() }}"]
    {
        let fixture = model("Qwen2.5 0.5B", tokens).set("tokenizer.chat_template", broken);
        let template = chosen(&fixture).unwrap().unwrap();
        assert!(template.source().contains("<|im_start|>"));
        let TemplateOrigin::Broken { family: "chatml", reason } = template.origin() else {
            panic!("{broken}: {:?}", template.origin())
        };
        assert!(reason.contains("chat template"), "{reason}");
        assert!(template.origin().to_string().contains(reason));
        // Without a family it is the file's error.
        let fixture = model("Some Chat", &[]).set("tokenizer.chat_template", broken);
        assert!(chosen(&fixture).is_err(), "{broken}");
    }
}

#[test]
fn a_template_that_works_is_used() {
    for own in ["{{ messages[0].content }}", "{{ raise_exception('I want a system message') }}"] {
        let fixture = model("Some Chat", &["<|im_start|>", "<|im_end|>"]).set("tokenizer.chat_template", own);
        let template = chosen(&fixture).unwrap().unwrap();
        assert_eq!((template.source(), template.origin()), (own, &TemplateOrigin::Given));
    }
}
