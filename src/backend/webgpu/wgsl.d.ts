/** Shaders are imported as text: by the rollup plugin, the test runner's plugin and test/fixtures/wgsl-loader.mjs. */
declare module "*.wgsl" {
  const source: string;
  export default source;
}
