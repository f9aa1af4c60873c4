//! The same results where nothing is done before it is waited for, and where the last block and the last thread come first.

use moli_testkit::mock_cuda_folder;

use crate::process::{is_child, run};

#[test]
fn nothing_leans_on_an_order() {
    assert!(!is_child());
    let tests = [
        "products::every_type",
        "products::several_matrices_at_once",
        "attention::windows_caps_and_sinks",
        "attention::every_group_of_heads",
        "elementwise::rms_norm",
        "elementwise::layer_norm",
        "elementwise::rope",
        "elementwise::zeros_and_copies",
        "elementwise::rows_are_selected_and_added",
        "pages::pages_hold_what_was_stored_and_are_copied",
        "unpacking::special_scales_have_the_processors_bits",
    ];
    let variables = [("MOLI_MOCK_LAZY", "1"), ("MOLI_MOCK_REVERSE", "1")];
    let output = run(&tests, &variables, &mock_cuda_folder().unwrap());
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains(&format!("{} passed", tests.len())), "{out}");
    assert!(!err.contains("mock CUDA:"), "{err}");
}

/// That spans are split over blocks in some batches and not in others: else their test compares a thing with itself.
#[test]
fn spans_are_split_and_not() {
    let variables = [("MOLI_MOCK_TRACE", "1")];
    let output = run(&["attention::long_sequences_in_every_batch"], &variables, &mock_cuda_folder().unwrap());
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    let launches = |grid: &str| {
        let of = |line: &&str| line.contains("attention_64<<<") && line.contains(grid);
        err.lines().filter(of).count()
    };
    // One row has a tile, whose four spans have a block each; a hundred rows have many tiles and no more blocks.
    assert!(launches("<<<(1, 1, 4)") >= 4, "{err}");
    assert!(launches(", 1, 1), (128") >= 8, "{err}");
    assert!(err.contains("merge_spans<<<(4, 1, 1)"), "{err}");
}
