"""Style sheet of the report: light and dark, for wide and narrow screens."""

from loadtest.charts import COLOURS

STYLE = """
:root{color-scheme:light dark;--fg:#1c2024;--dim:#60666d;--bg:#fff;--line:#e3e6ea;--card:#f7f8fa;
--c0:#2f6fde;--c1:#d9772b;--c2:#2a9d6a;--c3:#b34ab0;--c4:#8a6d3b;--c5:#4b8ea8;--bad:#d13438;
--good:#2a9d6a;--note:#8a6d00}
@media(prefers-color-scheme:dark){:root{--fg:#e8eaed;--dim:#9aa1a9;--bg:#16181b;--line:#30343a;
--card:#1e2125;--c0:#7aa7ff;--c1:#f2a368;--c2:#5fd3a0;--c3:#e08ade;--c4:#c9a86a;--c5:#86c5dd;
--bad:#ff7b7e;--good:#5fd3a0;--note:#e0c040}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:1320px;
margin:24px auto;padding:0 20px}
h1{font-size:22px;margin:0}h2{font-size:17px;margin:30px 0 8px}
p.sub,small,.empty{color:var(--dim)}code{font-size:13px;overflow-wrap:anywhere}
.banner{padding:10px 14px;border-left:4px solid var(--bad);background:var(--card);margin:14px 0}
.banner.good{border-color:var(--good)}.banner.note{border-color:var(--note)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;
font-size:14px}
th,td{padding:4px 6px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--dim);font-weight:600}th:first-child,td:first-child,td.text,th.text{text-align:left}
td.text{white-space:normal}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(max(420px,45%),100%),1fr));gap:18px}
figure{margin:0;padding:12px;background:var(--card);border-radius:8px}
figcaption{font-weight:600;margin-bottom:4px}svg{width:100%;height:auto;display:block}
svg text{font-size:12px;fill:var(--dim)}svg text.name{font-size:13px}
svg path{fill:none;stroke-width:2}path.dashed{stroke-dasharray:5 4}
.grid{stroke:var(--line)}.axis{stroke:var(--dim)}
line.limit{stroke:var(--bad);stroke-dasharray:5 4}
svg text.limit{fill:var(--bad);stroke:var(--card);stroke-width:3px;paint-order:stroke}
line.mark{stroke-width:2;stroke-dasharray:2 3}
.keys{font-size:13px;color:var(--dim)}.keys span{margin-right:16px;white-space:nowrap}
.keys i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
@media(max-width:640px){body{padding:0 10px}figure{padding:8px}
svg text,svg text.name{font-size:15px}}
""" + "".join(
    f"path.{name}{{stroke:var(--{name})}}circle.{name}{{fill:var(--{name});fill-opacity:.6}}"
    f"i.{name}{{background:var(--{name})}}line.{name}{{stroke:var(--{name})}}"
    for name in (*COLOURS, "bad", "good", "note")
)
