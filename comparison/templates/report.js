// One choice for all images of the gallery; each image can still be switched alone.
for (const choice of document.querySelectorAll('input[name="view-all"]')) {
  choice.addEventListener("change", () => {
    for (const view of document.querySelectorAll(".card input")) {
      if (view.value === choice.value) view.checked = true;
    }
  });
}
