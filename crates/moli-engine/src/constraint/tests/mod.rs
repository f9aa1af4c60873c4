//! Constrained answers of random models, checked by others.

mod model;
mod tokenizer;

use super::{Compiler, Grammar};

#[test]
fn smoke() {
    let tokenizer = tokenizer::realistic(4000);
    let t = std::time::Instant::now();
    let compiler = Compiler::new(&tokenizer).unwrap();
    println!("{:?}", t.elapsed());
    for g in [
        Grammar::Json,
        Grammar::Regex("[a-z]{3,5}/x".into()),
        Grammar::Gbnf("root ::= \"a\" root \"b\" | \"ab\"".into()),
    ] {
        let t = std::time::Instant::now();
        let mut c = compiler.compile(&g).unwrap();
        println!("{:?}", t.elapsed());
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        c.mask(&mut logits).unwrap();
        let shown: Vec<_> = logits
            .iter()
            .enumerate()
            .filter(|(_, l)| **l == 0.0)
            .take(10)
            .map(|(i, _)| tokenizer.token_text(i as u32))
            .collect();
        println!("{shown:?}");
        for seed in 0..3 {
            let mut c = compiler.compile(&g).unwrap();
            let a = model::answer(&tokenizer, &mut c, seed, 300).unwrap();
            println!("{} {} {:?}", a.finished, a.tokens, a.text);
        }
    }
}
