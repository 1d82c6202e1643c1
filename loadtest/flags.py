"""The flags of ``load run`` and ``load search``: their values, help texts and defaults."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtest.slo import MIN_SETTLING
from serving.client.flags import (
    CA_VARIABLE,
    CERT_VARIABLE,
    KEY_VARIABLE,
    Choice,
    CommaSeparated,
    GrpcAddress,
    HttpUrl,
    Number,
    OutputDirectory,
    Pair,
    ReadableFile,
    Text,
    WholeNumber,
    seconds,
)

MOST_TOKENS = 1_000_000
"""Maximum length of the prompts and answers of generated requests, tokens."""
RATE = Number("a rate", "requests/s", above=0, at_most=1_000_000)
_END = Number("a rate", "requests/s", at_least=0, at_most=1_000_000)
_LIMIT = Number("a limit", "milliseconds", above=0, at_most=10**9)
_TOKENS = WholeNumber("a length", of="tokens", at_most=MOST_TOKENS)
_LENGTHS = Pair(
    _TOKENS,
    f"a length must be a whole number of tokens from 1 to {MOST_TOKENS}, or a range A:B with "
    "A <= B",
    single=True,
    holds=lambda low, high: low <= high,
)


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a command."""

    name: str
    reads: Callable[[str], Any] | None
    """Parser of the flag's value; None for a flag without a value."""
    help: str
    metavar: str = ""
    default: str | None = None
    """Default value, as typed on a command line."""
    variable: str | None = None
    """Environment variable that is used if the flag is not given."""

    @property
    def key(self) -> str:
        """Name of the option's attribute."""
        return self.name.removeprefix("--").replace("-", "_")


Panel = tuple[str, tuple[Flag, ...]]

SERVER: Panel = (
    "Server",
    (
        Flag(
            "--rest-url",
            HttpUrl(),
            "REST address of the server; default: port 8000 on this machine.",
            "URL",
        ),
        Flag(
            "--grpc-address",
            GrpcAddress(),
            "gRPC address of a router; sends the load over gRPC instead of REST.",
            "HOST:PORT",
        ),
        Flag("--model", Text("a model id"), "Model id; default: the only served model.", "ID"),
        Flag(
            "--endpoint",
            Choice(("chat", "completions")),
            "Endpoint to load: chat or completions.",
            "NAME",
            "chat",
        ),
        Flag("--api-key", Text("a key"), "API key.", "KEY", variable=KEY_VARIABLE),
        Flag(
            "--ca-file",
            ReadableFile(),
            "PEM file with the certificate authority of the server's certificate.",
            "FILE",
            variable=CA_VARIABLE,
        ),
        Flag(
            "--cert-file",
            ReadableFile(),
            "PEM file with a client certificate and its key, if the server requires one.",
            "FILE",
            variable=CERT_VARIABLE,
        ),
        Flag(
            "--fleet-url",
            HttpUrl(),
            "REST address of the router whose /fleet marks faults and scaling in the timeline; "
            "default: --rest-url.",
            "URL",
        ),
        Flag("--timeout", seconds("a timeout"), "Request timeout.", "SECONDS", "120"),
        Flag(
            "--stop-after-failures",
            WholeNumber("a number of failures", at_least=0),
            "Consecutive failed connections after which the run ends; 0: never.",
            "N",
            "24",
        ),
    ),
)
REQUESTS: Panel = (
    "Requests",
    (
        Flag(
            "--prompt-tokens",
            _LENGTHS,
            "Prompt length, tokens; A:B draws it from a range.",
            "N|A:B",
            "100",
        ),
        Flag(
            "--output-tokens",
            _LENGTHS,
            "Maximum answer length, tokens; A:B draws it from a range.",
            "N|A:B",
            "32",
        ),
        Flag(
            "--shared-tokens",
            WholeNumber("a length", at_least=0, at_most=MOST_TOKENS, of="tokens"),
            "Length of a prefix that all prompts share, tokens.",
            "N",
            "0",
        ),
        Flag(
            "--turns",
            WholeNumber("a number of turns", at_most=10_000),
            "Requests per session, each with the conversation so far.",
            "N",
            "1",
        ),
        Flag(
            "--think",
            seconds("a pause", zero=True),
            "Pause between the turns of a session.",
            "SECONDS",
            "0",
        ),
        Flag(
            "--ignore-eos",
            None,
            "Generate exactly --output-tokens (vLLM and this router).",
        ),
        Flag(
            "--tokens-per-word",
            Number("a ratio", "tokens/word", above=0, at_most=1000),
            "Tokens per word, as counted by the server; default: measured with two requests.",
            "X",
        ),
        Flag(
            "--seed",
            WholeNumber("a seed", at_least=0, at_most=2**63),
            "Random seed; runs with the same seed send the same texts at the same times.",
            "N",
            "0",
        ),
        Flag(
            "--warmup",
            seconds("a warm-up", zero=True),
            "Unmeasured start of each stage or trial; at most half of its duration.",
            "SECONDS",
            "2",
        ),
        Flag(
            "--duration",
            seconds("a duration"),
            "Duration of each stage or trial, including the warm-up.",
            "SECONDS",
            "30",
        ),
        Flag(
            "--arrivals",
            Choice(("poisson", "constant", "gamma")),
            "Distribution of the gaps between requests: poisson, constant or gamma.",
            "NAME",
            "poisson",
        ),
        Flag(
            "--burstiness",
            Number("a burstiness", above=0, at_most=1000),
            "Coefficient of variation of the gaps (--arrivals gamma).",
            "CV",
            "2",
        ),
        Flag(
            "--out",
            OutputDirectory(),
            "Directory for the records and the report; created if missing.",
            "FOLDER",
            "load",
        ),
    ),
)
OBJECTIVE: Panel = (
    "Objective",
    (
        Flag("--slo-ttft-ms", _LIMIT, "Limit on the time to the first token.", "MS"),
        Flag(
            "--slo-itl-ms",
            _LIMIT,
            "Limit on a request's mean time between tokens (TPOT).",
            "MS",
        ),
        Flag("--slo-latency-ms", _LIMIT, "Limit on the total time of a request.", "MS"),
        Flag(
            "--slo-share",
            Number("a share", above=0, at_most=1),
            "Share of requests that must meet all limits.",
            "X",
            "0.99",
        ),
    ),
)
LOAD: Panel = (
    "Load (one of --rate, --ramp, --concurrency, --trace)",
    (
        Flag(
            "--rate",
            CommaSeparated(RATE),
            "Arrival rates, requests/s; one stage per rate.",
            "R[,R…]",
        ),
        Flag(
            "--ramp",
            Pair(
                _END,
                "a ramp must be FROM:TO, two rates from 0 to 1000000 requests/s, not both 0",
                holds=lambda start, end: start + end > 0,
            ),
            "One stage whose rate rises or falls from FROM to TO requests/s.",
            "FROM:TO",
        ),
        Flag(
            "--concurrency",
            CommaSeparated(WholeNumber("a concurrency", at_most=100_000, of="streams")),
            "Concurrent streams, each with one request at a time; one stage per number.",
            "N[,N…]",
        ),
        Flag(
            "--trace",
            ReadableFile(),
            "Trace to replay: JSON lines in Mooncake's format, or CSV with the columns "
            "timestamp,prompt_tokens,output_tokens.",
            "FILE",
        ),
        Flag(
            "--requests",
            WholeNumber("a number of requests"),
            "Requests to measure in each stage; default: all that are due in --duration.",
            "N",
        ),
        Flag(
            "--speed",
            Number("a speed", above=0, at_most=1_000_000),
            "Speed relative to the trace's timestamps.",
            "X",
            "1",
        ),
        Flag(
            "--trace-block",
            WholeNumber("a block", at_most=1_000_000, of="tokens"),
            "Tokens to send for every 512 of the trace; lower values scale all lengths down.",
            "TOKENS",
            "512",
        ),
        Flag(
            "--max-prompt-tokens",
            WholeNumber("a length", of="tokens"),
            "Maximum prompt length of a trace, tokens; longer prompts are truncated.",
            "N",
            "1000000000",
        ),
        Flag(
            "--max-output-tokens",
            WholeNumber("a length", of="tokens"),
            "Maximum answer length of a trace, tokens; longer answers are truncated.",
            "N",
            "1000000000",
        ),
        Flag(
            "--shard",
            Pair(
                WholeNumber("a number", at_least=0),
                "a shard must be I/N, two whole numbers with I from 0 to N-1",
                sign="/",
                holds=lambda index, count: index < count,
            ),
            "Send only every N-th request, starting with number I (from 0): the share of one of N "
            "workers with the same seed. 'load report' merges their runs.",
            "I/N",
            "0/1",
        ),
    ),
)
SEARCH: Panel = (
    "Search",
    (
        Flag(
            "--start",
            RATE,
            "First rate, requests/s; default: half the throughput of 32 streams.",
            "R",
        ),
        Flag("--most", RATE, "Highest rate to try, requests/s.", "R", "1000"),
        Flag(
            "--trial-requests",
            WholeNumber("a number of requests"),
            "Requests per trial; a trial lasts until all are due, at least --duration.",
            "N",
            "400",
        ),
        Flag(
            "--trials",
            WholeNumber("a number of trials", at_least=MIN_SETTLING, at_most=100_000),
            "Trials near the result, after about six to locate it; more increase precision.",
            "N",
            "24",
        ),
        Flag(
            "--searches",
            WholeNumber("a number of searches", at_most=1000),
            "Independent searches with different arrivals, whose trials alternate; shows how "
            "reproducible the result is.",
            "N",
            "1",
        ),
    ),
)
RUN_PANELS = (SERVER, REQUESTS, OBJECTIVE, LOAD)
SEARCH_PANELS = (SERVER, REQUESTS, OBJECTIVE, SEARCH)
