"use strict";
// Shows openapi.json: every operation with its parameters and answers, and lets GETs be tried.

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// `code` in descriptions is shown as code; all else is text.
const words = (text) =>
  make("span", {}, ...(text || "").split("`").map((part, at) => (at % 2 ? make("code", { textContent: part }) : part)));

const named = (reference) => reference.split("/").pop();

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return named(schema.$ref);
  const several = schema.anyOf || schema.oneOf;
  if (several) return several.map(typeOf).join(" | ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${typeOf(schema.items) || "anything"}`;
  if (schema.type === "object" && schema.additionalProperties) return `map to ${typeOf(schema.additionalProperties)}`;
  return schema.type || "anything";
}

// The schemas inside a schema that have a name, each once.
function references(schema) {
  if (!schema || typeof schema !== "object") return [];
  if (Array.isArray(schema)) return schema.flatMap(references);
  return [...(schema.$ref ? [named(schema.$ref)] : []), ...Object.values(schema).flatMap(references)];
}

function shape(name, schemas, seen) {
  const schema = schemas[name];
  if (!schema || seen.has(name)) return [];
  seen.add(name);
  const rows = Object.entries(schema.properties || {}).map(([field, one]) =>
    make("li", {}, make("code", { textContent: field }), ` ${typeOf(one)} `, words(one.description)));
  const own = make("div", {}, make("p", {}, make("strong", { textContent: name }), " ", words(schema.description)),
    make("ul", { className: "shape" }, ...rows));
  return [own, ...references(schema.properties).flatMap((inner) => shape(inner, schemas, seen))];
}

function field(parameter) {
  const choices = [parameter.schema, ...(parameter.schema.anyOf || [])].find((one) => one.enum);
  const label = `${parameter.name} (${parameter.in})`;
  if (!choices) return make("input", { name: parameter.name, ariaLabel: label, placeholder: String(parameter.schema.default ?? "") });
  const select = make("select", { name: parameter.name, ariaLabel: label }, make("option", { value: "", textContent: "" }));
  select.append(...choices.enum.map((one) => make("option", { value: one, textContent: one })));
  return select;
}

function parameters(list, inputs) {
  if (!list.length) return [];
  const rows = list.map((parameter) => {
    const input = field(parameter);
    inputs.push([parameter, input]);
    return make("tr", {}, make("td", {}, make("code", { textContent: parameter.name }), parameter.required ? " needed" : ""),
      make("td", { className: "wide", textContent: typeOf(parameter.schema) }), make("td", {}, words(parameter.description)),
      make("td", {}, input));
  });
  const head = make("tr", {}, make("th", { textContent: "Parameter" }), make("th", { className: "wide", textContent: "Type" }),
    make("th", { textContent: "Meaning" }), make("th", { textContent: "Value" }));
  return [make("div", { className: "scroll" }, make("table", { className: "parameters" }, make("thead", {}, head), make("tbody", {}, ...rows)))];
}

function trial(path, inputs) {
  const output = make("pre", { hidden: true, tabIndex: 0 });
  const button = make("button", { type: "button", textContent: "Try" });
  button.addEventListener("click", async () => {
    const query = new URLSearchParams();
    let target = path;
    for (const [parameter, input] of inputs) {
      if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (input.value !== "" && parameter.in === "query") {
        const isList = parameter.schema.type === "array";
        for (const value of isList ? input.value.split(",") : [input.value]) query.append(parameter.name, value.trim());
      }
    }
    const url = target.slice(1) + (query.size ? `?${query}` : "");
    const token = document.getElementById("token").value;
    output.hidden = false;
    output.textContent = `GET ${url}`;
    try {
      const answer = await fetch(url, { headers: token ? { Authorization: `Bearer ${token}` } : {} });
      const text = await answer.text();
      const isJson = (answer.headers.get("content-type") || "").includes("json");
      const shown = isJson ? JSON.stringify(JSON.parse(text), null, 1) : text;
      output.textContent = `GET ${url}\n${answer.status} ${answer.statusText}\n\n${shown.slice(0, 100000)}`;
    } catch (error) {
      output.textContent = `GET ${url}\n${error}`;
    }
  });
  return make("div", {}, make("p", {}, button), output);
}

function operation(path, method, one, schemas) {
  const inputs = [];
  const answers = Object.entries(one.responses || {}).map(([status, answer]) => {
    const kinds = Object.entries(answer.content || {}).map(([media, content]) => `${media}: ${typeOf(content.schema)}`);
    return make("li", {}, make("code", { textContent: status }), ` ${answer.description || ""} `,
      make("span", { className: "quiet", textContent: kinds.join(", ") }));
  });
  const details = make("details", { className: "operation", id: one.operationId || path },
    make("summary", {}, make("span", { className: `method ${method}`, textContent: method.toUpperCase() }),
      make("code", { textContent: path }), make("span", { className: "quiet", textContent: one.summary || "" })));
  // Filled when it is opened: the page has hundreds of fields.
  details.addEventListener("toggle", () => {
    const seen = new Set();
    details.append(make("div", {}, make("p", {}, words(one.description)), ...parameters(one.parameters || [], inputs),
      ...(method === "get" ? [trial(path, inputs)] : []),
      make("h3", { textContent: "Answers" }), make("ul", { className: "shape" }, ...answers),
      ...references([one.requestBody, one.responses]).flatMap((name) => shape(name, schemas, seen))));
  }, { once: true });
  return details;
}

function show(api) {
  const main = document.getElementById("operations");
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, one] of Object.entries(methods)) {
      const tag = (one.tags || ["other"])[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(operation(path, method, one, (api.components || {}).schemas || {}));
    }
  main.replaceChildren(make("p", {}, words(api.info.description)),
    ...[...groups].map(([tag, list]) => make("section", {}, make("h2", { textContent: tag }), ...list)));
  document.getElementById("find").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const one of main.querySelectorAll("details.operation"))
      one.hidden = !one.querySelector("summary").textContent.toLowerCase().includes(wanted);
  });
}

fetch("openapi.json")
  .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`openapi.json: ${answer.status}`))))
  .then(show)
  .catch((error) => document.getElementById("operations").replaceChildren(make("p", { textContent: String(error) })));
