// JupyterLab shows the first line of a folded output, which may be the answer to a prediction.
// This extension, in the form that JupyterLab loads without a build, shows a request instead.
const style = `
  .jp-OutputPlaceholder .jp-PlaceholderText { display: none; }
  .jp-OutputPlaceholder .jp-Placeholder-contentContainer::before {
    content: "Predict first, then click here"; font-style: italic;
  }`;
const plugin = {
  id: "minids:fold",
  autoStart: true,
  activate: () => {
    const element = document.createElement("style");
    element.textContent = style;
    document.head.append(element);
  },
};
(window._JUPYTERLAB ??= {}).minids = {
  init: () => {},
  get: async () => () => ({ __esModule: true, default: plugin }),
};
