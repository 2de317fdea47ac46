// ComfyUI's page: show the preview of the chosen file and the text of Info and Convert in
// their nodes, and warnings.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const FILE_NODES = new Set([
  "HnloaderLoadHypernetwork",
  "HnloaderCreateHookHypernetwork",
  "HnloaderHypernetworkStrengths",
  "HnloaderHypernetworkInfo",
  "HnloaderConvertHypernetwork",
]);
const PREVIEW_HEIGHT = 200;
const TEXT_HEIGHT = 170;
const TEXT_NODES = new Set(["HnloaderHypernetworkInfo", "HnloaderConvertHypernetwork"]);

// An element below the widgets of a node. It is not a part of the workflow.
function addElement(node, name, element, height) {
  const widget = node.addDOMWidget(name, name, element, {
    serialize: false,
    getMinHeight: () => (element.hidden ? 0 : height),
    getMaxHeight: () => (element.hidden ? 0 : 10000),
  });
  widget.serialize = false;
  return widget;
}

function resize(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), height]);
  node.graph?.setDirtyCanvas(true, true);
}

// Show the image beside the file `name`, or none.
async function showPreview(node, name) {
  node.hnloaderShown = name;
  let address = "";
  try {
    const answer = await api.fetchApi(`/hnloader/preview?file=${encodeURIComponent(name)}`);
    if (answer.status === 200) address = URL.createObjectURL(await answer.blob());
  } catch {
    address = ""; // the node works without its image
  }
  if (node.hnloaderShown !== name) return; // another file was chosen since
  let image = node.widgets?.find((each) => each.name === "hnloader_preview")?.element;
  if (!image) {
    if (!address) return;
    image = document.createElement("img");
    image.alt = "Preview of the hypernetwork";
    image.style.objectFit = "contain";
    addElement(node, "hnloader_preview", image, PREVIEW_HEIGHT);
  }
  if (image.src) URL.revokeObjectURL(image.src);
  if (address) image.src = address;
  else image.removeAttribute("src");
  image.hidden = !address;
  image.style.display = address ? "" : "none";
  resize(node);
}

function followFile(node) {
  const widget = node.widgets?.find((each) => each.name === "hypernetwork");
  if (!widget) return;
  const before = widget.callback;
  widget.callback = function (value, ...rest) {
    const result = before?.call(this, value, ...rest);
    showPreview(node, String(widget.value));
    return result;
  };
  const configured = node.onConfigure;
  node.onConfigure = function (...given) {
    const result = configured?.apply(this, given);
    showPreview(node, String(widget.value));
    return result;
  };
  showPreview(node, String(widget.value));
}

function showText(node, lines) {
  let area = node.widgets?.find((each) => each.name === "hnloader_text")?.element;
  if (!area) {
    area = document.createElement("textarea");
    area.readOnly = true;
    area.className = "comfy-multiline-input";
    addElement(node, "hnloader_text", area, TEXT_HEIGHT);
    node.setSize([Math.max(node.size[0], 400), node.size[1]]);
  }
  area.value = lines.join("\n");
  resize(node);
}

api.addEventListener("hnloader.warning", ({ detail }) => {
  app.extensionManager?.toast?.add({ severity: "warn", summary: "Hypernetwork", detail: detail.text, life: 20000 });
});

app.registerExtension({
  name: "hnloader.hypernetworks",
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (FILE_NODES.has(nodeData.name)) {
      const created = nodeType.prototype.onNodeCreated;
      nodeType.prototype.onNodeCreated = function (...given) {
        const result = created?.apply(this, given);
        followFile(this);
        return result;
      };
    }
    if (TEXT_NODES.has(nodeData.name)) {
      const executed = nodeType.prototype.onExecuted;
      nodeType.prototype.onExecuted = function (output) {
        executed?.apply(this, arguments);
        if (output?.text) showText(this, output.text);
      };
    }
  },
});
