// Live progress: without this script the page shows the same when it is loaded again.
"use strict";
const job = document.querySelector("[data-job]:not([data-job=''])");
async function renew() {
  const answer = await fetch("/jobs/" + Number(job.dataset.job) + "/now");
  if (!answer.ok) return;
  const found = await answer.json();
  for (const name of ["state", "seconds", "amount", "error", "said"]) {
    document.getElementById(name).textContent = found[name];
  }
  document.getElementById("share").value = Number(found.share);
  if (found.state === "works") setTimeout(renew, 500);
  else location.reload();
}
if (job) renew();
