/** The page's elements by id, with their types checked once. */

type Constructor<T> = abstract new () => T;

/** The element with this id. Throws if the page has none of this type, which is a mistake in the page. */
export function element<T extends HTMLElement>(id: string, type: Constructor<T>): T {
  const found = document.getElementById(id);
  if (found instanceof type) return found;
  throw new Error(`the page has no ${type.name} with the id ${id}`);
}

/** A new element with a class and text in it. Text is always inserted as text. */
export function create<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  className = "",
  text = "",
): HTMLElementTagNameMap[Tag] {
  const made = document.createElement(tag);
  if (className !== "") made.className = className;
  if (text !== "") made.append(text);
  return made;
}
