"""The batches dashboard: lines by state, their use of spare capacity, and their storage.

Lines by state and ages are the same at all routers that share a database; the rest is per router.
"""

from panels import RATE, Panel, Query, dashboard, rate

_RUNNING = "sum(moe_batch_running_lines)"
_FREE = "min(moe_batch_room_lines - moe_batch_running_lines)"
"""Remaining room, which is the same at all routers."""
_USE = f"{_RUNNING} / clamp_min({_RUNNING} + {_FREE}, 1)"
_LINES = f'sum(rate(moe_batch_tokens_total{{kind="generated"}}[{RATE}]))'
_CLIENTS = f"sum(rate(moe_generated_tokens_total[{RATE}]))"
_ANSWERS = f"sum(rate(moe_batch_answers_total[{RATE}]))"
_PREEMPTIONS = f"sum(rate(moe_batch_preemptions_total[{RATE}]))"

_OVERVIEW = [
    Panel("Lines to run", "short", [Query('max(moe_batch_lines{state=~"open|claimed"})', "")],
          "Lines without an answer, of all batches that have not ended; updated once a minute.",
          stat=True),
    Panel("Oldest batch", "s", [Query("max(moe_batch_oldest_age_seconds)", "")],
          "Age of the oldest batch that has not ended; compare with the completion windows.",
          stat=True),
    Panel("Answers", "reqps", [Query(_ANSWERS, "")], "Lines answered per second.", stat=True),
    Panel("Gap use", "percentunit", [Query(_USE, "")],
          "Lines on ranks, relative to the number for which other requests leave room.",
          stat=True),
    Panel("Tokens of lines", "percentunit", [Query(f"{_LINES} / ({_LINES} + {_CLIENTS})", "")],
          "Share of all generated tokens that are answers to lines.", stat=True),
    Panel("Size of files", "bytes", [Query("max(moe_batch_file_bytes)", "")],
          "Inputs and results of all tenants.", stat=True),
]  # fmt: skip

_PROGRESS = [
    Panel("Lines by state", "short",
          [Query("max by (state) (moe_batch_lines)", "{{state}}")],
          "Lines of batches that have not ended. If lines are open but none is claimed, no router "
          "runs batches, or none has room."),
    Panel("Answers by outcome", "reqps", [rate("moe_batch_answers_total", "outcome")],
          "Lines answered per second. The error files give the reasons of failed lines."),
    Panel("Age", "s", [Query("max(moe_batch_oldest_age_seconds)", "oldest batch")],
          "A curve that only rises means that batches do not finish."),
]  # fmt: skip

_GAPS = [
    Panel("Lines and room", "short",
          [Query(_RUNNING, "running"), Query(_FREE, "more would have room"),
           Query("sum(moe_batch_waiting_lines)", "waiting")],
          "Lines on ranks, the remaining room, and lines that wait. If lines wait although there "
          "is room, the engines' queues or KV caches are full."),
    Panel("Preemptions", "reqps",
          [Query(_PREEMPTIONS, "preemptions"),
           Query(f"{_PREEMPTIONS} / clamp_min({_ANSWERS}, 0.01)", "per answer")],
          "Lines preempted for other requests. Several per answer: batch.itl_slo or "
          "batch.max_step_growth leaves little room."),
    Panel("Generated tokens", "short",
          [Query(_LINES, "lines"), Query(_CLIENTS, "other requests")],
          "Tokens per second. The tokens of a line count when it is answered."),
    Panel("Prompt tokens of lines", "short",
          [rate("moe_batch_tokens_total", "kind", where='kind=~"prompt|cached"')],
          "Tokens per second, and the part that came from a KV cache."),
]  # fmt: skip

_STORAGE = [
    Panel("Failed attempts", "short",
          [Query(f"sum by (stage) (increase(moe_batch_failures_total[{RATE}]))", "{{stage}}")],
          "Attempts to validate, run or finish batches that failed; they are repeated, and the "
          "log has the reason."),
    Panel("Size of files over time", "bytes", [Query("max(moe_batch_file_bytes)", "files")],
          "Compare with the disk of batch.directory, or the bucket."),
]  # fmt: skip

DASHBOARD = dashboard(
    "moe-serving-batches",
    "MoE serving / Batches",
    "Lines of batches, their use of spare capacity, and their storage.",
    {"Overview": _OVERVIEW, "Progress": _PROGRESS, "Gaps": _GAPS, "Storage": _STORAGE},
)
