#!/usr/bin/env python3
"""llama.cpp as a peer of `cargo bench -p moli --bench peers`: a process that keeps a model and times what it is told.

    scripts/peers-venv.sh
    target/peers/bin/python scripts/peer-llama-cpp.py MODEL.gguf THREADS

It says `ready` when the model is loaded. Then each line of standard input is a workload, answered by one line: `seconds 0.123`,
or `error` and a reason.

    prefill TOKENS          read that many tokens
    decode STEPS DEPTH      read a token STEPS times, after DEPTH that aren't timed
    batch SEQUENCES STEPS   read a token of each sequence STEPS times

As in llama.cpp's own llama-bench the tokens are random, the logits of the last one are computed, nothing is sampled, and each
workload runs once unmeasured when it is new. To use another build of the same llama.cpp, set LLAMA_CPP_LIB_PATH to the folder of
its libllama.
"""
import ctypes
import random
import sys
import time

import llama_cpp as llama


class Peer:
    def __init__(self, path, threads):
        self.threads = threads
        self.contexts = {}
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp can't load {path}")
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))

    def context(self, tokens, sequences):
        """A cleared context; one is kept for each size, since making it costs more than some workloads do."""
        if (tokens, sequences) not in self.contexts:
            params = llama.llama_context_default_params()
            params.n_ctx, params.n_seq_max = tokens * sequences, sequences
            params.n_batch, params.n_ubatch = 2048, 512  # llama-bench's
            params.n_threads = params.n_threads_batch = self.threads
            context = llama.llama_init_from_model(self.model, params)
            if not context:
                raise RuntimeError(f"llama.cpp can't make a context of {sequences} times {tokens} tokens")
            self.contexts[tokens, sequences] = context
        context = self.contexts[tokens, sequences]
        llama.llama_memory_clear(llama.llama_get_memory(context), False)
        return context

    def decode(self, context, batch):
        code = llama.llama_decode(context, batch)
        if code:
            raise RuntimeError(f"llama_decode says {code}")
        llama.llama_synchronize(context)

    def token(self):
        return random.randrange(self.vocab)

    def read(self, context, count):
        """Reads `count` tokens in batches, behind those that the context holds."""
        for start in range(0, count, 2048):
            size = min(2048, count - start)
            tokens = (llama.llama_token * size)(*(self.token() for _ in range(size)))
            self.decode(context, llama.llama_batch_get_one(tokens, size))

    def prefill(self, tokens):
        context = self.context(tokens, 1)
        return seconds(lambda: self.read(context, tokens))

    def steps(self, steps, depth):
        context = self.context(depth + steps, 1)
        self.read(context, depth)
        return seconds(lambda: [self.read(context, 1) for _ in range(steps)])

    def batch(self, sequences, steps):
        context = self.context(steps, sequences)
        batch = llama.llama_batch_init(sequences, 0, 1)
        batch.n_tokens = sequences
        try:
            return seconds(lambda: [self.step(context, batch, position) for position in range(steps)])
        finally:
            llama.llama_batch_free(batch)

    def step(self, context, batch, position):
        for sequence in range(batch.n_tokens):
            batch.token[sequence], batch.pos[sequence] = self.token(), position
            batch.n_seq_id[sequence], batch.seq_id[sequence][0], batch.logits[sequence] = 1, sequence, 1
        self.decode(context, batch)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@llama.llama_log_callback
def silent(level, text, data):
    pass


def main():
    random.seed(1)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    path, threads = sys.argv[1:3]
    peer = Peer(path, int(threads))
    workloads = {"prefill": peer.prefill, "decode": peer.steps, "batch": peer.batch}
    print("ready", flush=True)
    warm = set()
    for line in sys.stdin:
        try:
            name, *numbers = line.split()
            numbers = [int(number) for number in numbers]
            if line not in warm:
                workloads[name](*numbers)
                warm.add(line)
            print(f"seconds {workloads[name](*numbers):.6f}", flush=True)
        except (KeyError, TypeError, ValueError) as error:
            print(f"error not a workload: {line.strip()} ({error})", flush=True)
        except RuntimeError as error:
            print(f"error {error}", flush=True)


if __name__ == "__main__":
    main()
