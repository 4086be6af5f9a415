# %% [markdown]
# # A benchmark on a local cluster
#
# A plan is a TOML text: problems, priors, methods. Every task gets a key, the digest of all that determines its result,
# and a folder in a store that appears when the task is complete. So a run may be killed and repeated: only what is missing
# is computed.

# %%
from pathlib import Path

_ = Path("plan.toml").write_text("""
n_samples = 4
seeds = [0]
keep = 4

[[problem]]
name = "CT, 40 views"
make = "sparse_view_ct"
with = { n_views = 40 }
items = { seed = [0, 1] }
prior = "ct-128"

[[method]]
name = "FBP"
algorithm = "fbp"
set = { window = "hann" }

[[method]]
name = "DDS"
algorithm = "dds"
set = { n_steps = [10, 20] }

[[method]]
name = "DAPS"
algorithm = "daps"
set = { n_anneal = 25 }
""")

# %%
from invdiff.benchmark import Plan, load_results, run
from invdiff.benchmark.cluster import local

plan = Plan.read("plan.toml")
with local(workers=2) as executor:
    print(run(plan, "store", executor=executor))

# %% [markdown]
# The same call again finds everything done:

# %%
print(run(plan, "store"))

# %% [markdown]
# Results are a table.

# %%
table = load_results("store")
means = table.groupby("method")[["psnr", "ssim", "chi2", "seconds"]].mean()
means.round(3)

# %% [markdown]
# What an answer costs: the line joins the methods that no other one beats in both.

# %%
from invdiff.plot import pareto

points = {name: (row.seconds, row.psnr) for name, row in means.iterrows()}
figure, axes = pareto(points, cost="seconds for 4 samples, one worker", quality="PSNR of the mean [dB]")
figure

# %% [markdown]
# `invdiff bench report plan.toml --store store --out report.html` writes one page with tables, paired statistics and a
# viewer. On a cluster give `--slurm FILE` (a TOML of dask-jobqueue's SLURMCluster) or the address of a running scheduler.
