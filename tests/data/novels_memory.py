"""Run by test_corpus_real.py in a process of its own: tokenise a file, print peak memory and seconds as JSON."""

import json
import resource
import sys
import time

from tunecore.data.corpus import build_corpus
from tunecore.data.tokenizer import load_tokenizer

tokenizer_path, text_path, cache_dir = sys.argv[1:4]
tokenizer = load_tokenizer(tokenizer_path)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
corpus = build_corpus(
    [text_path], tokenizer, cache_dir=cache_dir, columns=("word_starts", "sentence_starts"), progress=True
)
rows = corpus.rows("pair", 128)
print(
    json.dumps(
        {
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "before_mb": before / 1024,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": resource.getrusage(resource.RUSAGE_SELF).ru_utime,
            "tokens": corpus.num_tokens,
            "documents": corpus.num_documents,
            "rows": len(rows),
        }
    )
)
