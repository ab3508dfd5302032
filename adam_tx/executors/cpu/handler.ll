%struct.XLA_FFI_ThreadPool_NumThreads_Args = type { i64, ptr, ptr, ptr }
%struct.XLA_FFI_Error_Create_Args = type { i64, ptr, ptr, i32 }
%struct.XLA_FFI_ThreadPool_Schedule_Args = type { i64, ptr, ptr, ptr, ptr }
%struct.Leaf = type { ptr, i32, i64, i64 }

@.str = private unnamed_addr constant [30 x i8] c"adam_tx: no memory for a step\00", align 1
@.str.1 = private unnamed_addr constant [74 x i8] c"adam_tx: a call with another number of arrays than its kernel is made for\00", align 1
@.str.2 = private unnamed_addr constant [63 x i8] c"adam_tx: a call with other scalars than its kernel is made for\00", align 1
@.str.3 = private unnamed_addr constant [46 x i8] c"adam_tx: an operand of another shape or dtype\00", align 1
@.str.4 = private unnamed_addr constant [44 x i8] c"adam_tx: a result of another shape or dtype\00", align 1

define ptr @adam_tx_call(ptr noundef readonly %0, ptr noundef readonly %1) local_unnamed_addr {
  %3 = alloca i64, align 8
  %4 = alloca %struct.XLA_FFI_ThreadPool_NumThreads_Args, align 8
  %5 = alloca %struct.XLA_FFI_Error_Create_Args, align 8
  %6 = alloca %struct.XLA_FFI_Error_Create_Args, align 8
  %7 = alloca %struct.XLA_FFI_ThreadPool_Schedule_Args, align 8
  %8 = getelementptr inbounds nuw i8, ptr %0, i64 8
  %9 = load ptr, ptr %8, align 8
  %10 = icmp eq ptr %9, null
  br i1 %10, label %20, label %11

11:
  %12 = getelementptr inbounds nuw i8, ptr %9, i64 8
  %13 = load i32, ptr %12, align 8
  %14 = icmp eq i32 %13, 1
  br i1 %14, label %15, label %20

15:
  %16 = getelementptr inbounds nuw i8, ptr %9, i64 24
  %17 = load ptr, ptr %16, align 8
  %18 = getelementptr inbounds nuw i8, ptr %17, i64 24
  store i32 0, ptr %18, align 8
  %19 = getelementptr inbounds nuw i8, ptr %17, i64 28
  store i32 1, ptr %19, align 4
  br label %322

20:
  %21 = getelementptr inbounds nuw i8, ptr %0, i64 32
  %22 = load i32, ptr %21, align 8
  %23 = icmp eq i32 %22, 3
  br i1 %23, label %24, label %322

24:
  %25 = getelementptr inbounds nuw i8, ptr %0, i64 56
  %26 = load i64, ptr %25, align 8
  %27 = icmp slt i64 %26, 2
  br i1 %27, label %135, label %28

28:
  %29 = add nsw i64 %26, -2
  %30 = getelementptr inbounds nuw i8, ptr %1, i64 8
  %31 = load i64, ptr %30, align 8
  %32 = sdiv i64 %29, %31
  %33 = getelementptr inbounds nuw i8, ptr %0, i64 72
  %34 = load ptr, ptr %33, align 8
  %35 = getelementptr inbounds nuw i8, ptr %0, i64 112
  %36 = load ptr, ptr %35, align 8
  %37 = icmp slt i64 %32, 1
  br i1 %37, label %135, label %38

38:
  %39 = mul nsw i64 %31, %32
  %40 = add nsw i64 %39, 2
  %41 = icmp eq i64 %26, %40
  br i1 %41, label %42, label %135

42:
  %43 = getelementptr inbounds nuw i8, ptr %0, i64 96
  %44 = load i64, ptr %43, align 8
  %45 = getelementptr inbounds nuw i8, ptr %1, i64 16
  %46 = load i64, ptr %45, align 8
  %47 = mul nsw i64 %46, %32
  %48 = icmp eq i64 %44, %47
  br i1 %48, label %49, label %135

49:
  %50 = load ptr, ptr %34, align 8
  %51 = getelementptr inbounds nuw i8, ptr %50, i64 32
  %52 = load i64, ptr %51, align 8
  %53 = icmp sgt i64 %52, 0
  br i1 %53, label %54, label %65

54:
  %55 = getelementptr inbounds nuw i8, ptr %50, i64 40
  %56 = load ptr, ptr %55, align 8
  br label %57

57:
  %58 = phi i64 [ 0, %54 ], [ %63, %57 ]
  %59 = phi i64 [ 1, %54 ], [ %62, %57 ]
  %60 = getelementptr inbounds nuw i64, ptr %56, i64 %58
  %61 = load i64, ptr %60, align 8
  %62 = mul nsw i64 %61, %59
  %63 = add nuw nsw i64 %58, 1
  %64 = icmp eq i64 %63, %52
  br i1 %64, label %65, label %57

65:
  %66 = phi i64 [ 1, %49 ], [ %62, %57 ]
  %67 = getelementptr inbounds nuw i8, ptr %1, i64 24
  %68 = load i64, ptr %67, align 8
  %69 = icmp eq i64 %66, %68
  br i1 %69, label %70, label %135

70:
  %71 = getelementptr inbounds nuw i8, ptr %34, i64 8
  %72 = load ptr, ptr %71, align 8
  %73 = getelementptr inbounds nuw i8, ptr %72, i64 32
  %74 = load i64, ptr %73, align 8
  %75 = icmp sgt i64 %74, 0
  br i1 %75, label %76, label %87

76:
  %77 = getelementptr inbounds nuw i8, ptr %72, i64 40
  %78 = load ptr, ptr %77, align 8
  br label %79

79:
  %80 = phi i64 [ 0, %76 ], [ %85, %79 ]
  %81 = phi i64 [ 1, %76 ], [ %84, %79 ]
  %82 = getelementptr inbounds nuw i64, ptr %78, i64 %80
  %83 = load i64, ptr %82, align 8
  %84 = mul nsw i64 %83, %81
  %85 = add nuw nsw i64 %80, 1
  %86 = icmp eq i64 %85, %74
  br i1 %86, label %87, label %79

87:
  %88 = phi i64 [ 1, %70 ], [ %84, %79 ]
  %89 = icmp eq i64 %88, %32
  br i1 %89, label %90, label %135

90:
  %91 = getelementptr inbounds nuw i8, ptr %50, i64 16
  %92 = load i32, ptr %91, align 8
  %93 = icmp eq i32 %92, 8
  br i1 %93, label %94, label %135

94:
  %95 = getelementptr inbounds nuw i8, ptr %72, i64 16
  %96 = load i32, ptr %95, align 8
  %97 = icmp eq i32 %96, 8
  br i1 %97, label %98, label %135

98:
  %99 = getelementptr inbounds nuw i8, ptr %34, i64 16
  %100 = icmp sgt i64 %31, 0
  %101 = icmp sgt i64 %46, 0
  br label %102

102:
  %103 = phi i64 [ 0, %98 ], [ %133, %132 ]
  %104 = mul nsw i64 %103, %31
  %105 = getelementptr inbounds ptr, ptr %99, i64 %104
  %106 = mul nsw i64 %103, %46
  %107 = getelementptr inbounds ptr, ptr %36, i64 %106
  br i1 %100, label %108, label %113

108:
  %109 = load ptr, ptr %105, align 8
  br label %116

110:
  %111 = add nuw nsw i64 %117, 1
  %112 = icmp eq i64 %111, %31
  br i1 %112, label %113, label %116

113:
  br i1 %101, label %114, label %132

114:
  %115 = load ptr, ptr %105, align 8
  br label %125

116:
  %117 = phi i64 [ 0, %108 ], [ %111, %110 ]
  %118 = getelementptr inbounds nuw ptr, ptr %105, i64 %117
  %119 = load ptr, ptr %118, align 8
  %120 = tail call fastcc i32 @fits(ptr noundef readonly %1, i64 noundef %117, ptr noundef %119, ptr noundef %109)
  %121 = icmp eq i32 %120, 0
  br i1 %121, label %135, label %110

122:
  %123 = add nuw nsw i64 %126, 1
  %124 = icmp eq i64 %123, %46
  br i1 %124, label %132, label %125

125:
  %126 = phi i64 [ 0, %114 ], [ %123, %122 ]
  %127 = add nsw i64 %126, %31
  %128 = getelementptr inbounds nuw ptr, ptr %107, i64 %126
  %129 = load ptr, ptr %128, align 8
  %130 = tail call fastcc i32 @fits(ptr noundef readonly %1, i64 noundef %127, ptr noundef %129, ptr noundef %115)
  %131 = icmp eq i32 %130, 0
  br i1 %131, label %135, label %122

132:
  %133 = add nuw nsw i64 %103, 1
  %134 = icmp eq i64 %133, %32
  br i1 %134, label %146, label %102

135:
  %136 = phi ptr [ @.str.2, %87 ], [ @.str.1, %24 ], [ @.str.4, %125 ], [ @.str.2, %90 ], [ @.str.2, %94 ], [ @.str.1, %38 ], [ @.str.1, %42 ], [ @.str.2, %65 ], [ @.str.1, %28 ], [ @.str.3, %116 ]
  store i64 32, ptr %6, align 8
  %137 = getelementptr inbounds nuw i8, ptr %6, i64 8
  store ptr null, ptr %137, align 8
  %138 = getelementptr inbounds nuw i8, ptr %6, i64 16
  store ptr %136, ptr %138, align 8
  %139 = getelementptr inbounds nuw i8, ptr %6, i64 24
  store i32 3, ptr %139, align 8
  %140 = getelementptr inbounds nuw i8, ptr %6, i64 28
  store i32 0, ptr %140, align 4
  %141 = getelementptr inbounds nuw i8, ptr %0, i64 16
  %142 = load ptr, ptr %141, align 8
  %143 = getelementptr inbounds nuw i8, ptr %142, i64 48
  %144 = load ptr, ptr %143, align 8
  %145 = call ptr %144(ptr noundef nonnull %6)
  br label %322

146:
  %147 = add nsw i64 %46, %31
  %148 = shl i64 %147, 3
  %149 = add i64 %148, 32
  %150 = mul i64 %149, %32
  %151 = add i64 %150, 72
  %152 = tail call noalias ptr @malloc(i64 noundef %151)
  %153 = icmp eq ptr %152, null
  br i1 %153, label %239, label %154

154:
  %155 = getelementptr inbounds nuw i8, ptr %152, i64 72
  %156 = getelementptr inbounds nuw %struct.Leaf, ptr %155, i64 %32
  %157 = load ptr, ptr %1, align 8
  %158 = getelementptr inbounds nuw i8, ptr %152, i64 56
  store ptr %157, ptr %158, align 8
  %159 = load ptr, ptr %34, align 8
  %160 = getelementptr inbounds nuw i8, ptr %159, i64 24
  %161 = load ptr, ptr %160, align 8
  %162 = getelementptr inbounds nuw i8, ptr %152, i64 64
  store ptr %161, ptr %162, align 8
  %163 = getelementptr inbounds nuw i8, ptr %152, i64 48
  store i64 %32, ptr %163, align 8
  %164 = getelementptr inbounds nuw i8, ptr %152, i64 40
  store i64 0, ptr %164, align 8
  %165 = getelementptr inbounds nuw i8, ptr %1, i64 40
  %166 = load i64, ptr %165, align 8
  %167 = icmp eq i64 %166, 0
  br label %168

168:
  %169 = phi i64 [ 0, %154 ], [ %225, %224 ]
  %170 = phi i64 [ 0, %154 ], [ %226, %224 ]
  %171 = mul nsw i64 %170, %31
  %172 = getelementptr inbounds ptr, ptr %99, i64 %171
  %173 = mul nsw i64 %170, %46
  %174 = getelementptr inbounds ptr, ptr %36, i64 %173
  %175 = getelementptr inbounds nuw %struct.Leaf, ptr %155, i64 %170
  %176 = mul nsw i64 %170, %147
  %177 = getelementptr inbounds ptr, ptr %156, i64 %176
  store ptr %177, ptr %175, align 8
  %178 = load ptr, ptr %71, align 8
  %179 = getelementptr inbounds nuw i8, ptr %178, i64 24
  %180 = load ptr, ptr %179, align 8
  %181 = getelementptr inbounds nuw i32, ptr %180, i64 %170
  %182 = load i32, ptr %181, align 4
  %183 = getelementptr inbounds nuw i8, ptr %175, i64 8
  store i32 %182, ptr %183, align 8
  %184 = load ptr, ptr %172, align 8
  %185 = getelementptr inbounds nuw i8, ptr %184, i64 32
  %186 = load i64, ptr %185, align 8
  br i1 %167, label %195, label %187

187:
  %188 = icmp eq i64 %186, 0
  br i1 %188, label %208, label %189

189:
  %190 = getelementptr inbounds nuw i8, ptr %184, i64 40
  %191 = load ptr, ptr %190, align 8
  %192 = getelementptr i64, ptr %191, i64 %186
  %193 = getelementptr i8, ptr %192, i64 -8
  %194 = load i64, ptr %193, align 8
  br label %208

195:
  %196 = icmp sgt i64 %186, 0
  br i1 %196, label %197, label %208

197:
  %198 = getelementptr inbounds nuw i8, ptr %184, i64 40
  %199 = load ptr, ptr %198, align 8
  br label %200

200:
  %201 = phi i64 [ 0, %197 ], [ %206, %200 ]
  %202 = phi i64 [ 1, %197 ], [ %205, %200 ]
  %203 = getelementptr inbounds nuw i64, ptr %199, i64 %201
  %204 = load i64, ptr %203, align 8
  %205 = mul nsw i64 %204, %202
  %206 = add nuw nsw i64 %201, 1
  %207 = icmp eq i64 %206, %186
  br i1 %207, label %208, label %200

208:
  %209 = phi i64 [ %194, %189 ], [ 1, %195 ], [ 1, %187 ], [ %205, %200 ]
  %210 = getelementptr inbounds nuw i8, ptr %175, i64 16
  store i64 %209, ptr %210, align 8
  %211 = tail call fastcc i64 @tiles_of(ptr noundef nonnull readonly %1, ptr noundef nonnull %184)
  %212 = getelementptr inbounds nuw i8, ptr %175, i64 24
  store i64 %211, ptr %212, align 8
  br i1 %100, label %214, label %213

213:
  br i1 %101, label %228, label %224

214:
  %215 = phi i64 [ %222, %214 ], [ 0, %208 ]
  %216 = getelementptr inbounds nuw ptr, ptr %172, i64 %215
  %217 = load ptr, ptr %216, align 8
  %218 = getelementptr inbounds nuw i8, ptr %217, i64 24
  %219 = load ptr, ptr %218, align 8
  %220 = load ptr, ptr %175, align 8
  %221 = getelementptr inbounds nuw ptr, ptr %220, i64 %215
  store ptr %219, ptr %221, align 8
  %222 = add nuw nsw i64 %215, 1
  %223 = icmp eq i64 %222, %31
  br i1 %223, label %213, label %214

224:
  %225 = add nsw i64 %211, %169
  store i64 %225, ptr %164, align 8
  %226 = add nuw nsw i64 %170, 1
  %227 = icmp eq i64 %226, %32
  br i1 %227, label %249, label %168

228:
  %229 = phi i64 [ %237, %228 ], [ 0, %213 ]
  %230 = getelementptr inbounds nuw ptr, ptr %174, i64 %229
  %231 = load ptr, ptr %230, align 8
  %232 = getelementptr inbounds nuw i8, ptr %231, i64 24
  %233 = load ptr, ptr %232, align 8
  %234 = load ptr, ptr %175, align 8
  %235 = getelementptr ptr, ptr %234, i64 %31
  %236 = getelementptr ptr, ptr %235, i64 %229
  store ptr %233, ptr %236, align 8
  %237 = add nuw nsw i64 %229, 1
  %238 = icmp eq i64 %237, %46
  br i1 %238, label %224, label %228

239:
  store i64 32, ptr %5, align 8
  %240 = getelementptr inbounds nuw i8, ptr %5, i64 8
  store ptr null, ptr %240, align 8
  %241 = getelementptr inbounds nuw i8, ptr %5, i64 16
  store ptr @.str, ptr %241, align 8
  %242 = getelementptr inbounds nuw i8, ptr %5, i64 24
  store i32 3, ptr %242, align 8
  %243 = getelementptr inbounds nuw i8, ptr %5, i64 28
  store i32 0, ptr %243, align 4
  %244 = getelementptr inbounds nuw i8, ptr %0, i64 16
  %245 = load ptr, ptr %244, align 8
  %246 = getelementptr inbounds nuw i8, ptr %245, i64 48
  %247 = load ptr, ptr %246, align 8
  %248 = call ptr %247(ptr noundef nonnull %5)
  br label %322

249:
  %250 = getelementptr inbounds nuw i8, ptr %1, i64 32
  %251 = load i64, ptr %250, align 8
  store i64 1, ptr %3, align 8
  store i64 32, ptr %4, align 8
  %252 = getelementptr inbounds nuw i8, ptr %4, i64 8
  store ptr null, ptr %252, align 8
  %253 = getelementptr inbounds nuw i8, ptr %4, i64 16
  %254 = getelementptr inbounds nuw i8, ptr %0, i64 24
  %255 = load ptr, ptr %254, align 8
  store ptr %255, ptr %253, align 8
  %256 = getelementptr inbounds nuw i8, ptr %4, i64 24
  store ptr %3, ptr %256, align 8
  %257 = getelementptr inbounds nuw i8, ptr %0, i64 16
  %258 = load ptr, ptr %257, align 8
  %259 = getelementptr inbounds nuw i8, ptr %258, i64 144
  %260 = load ptr, ptr %259, align 8
  %261 = call ptr %260(ptr noundef nonnull %4)
  %262 = icmp eq ptr %261, null
  %263 = load i64, ptr %3, align 8
  %264 = select i1 %262, i64 %263, i64 1
  %265 = add nsw i64 %251, 32767
  %266 = sdiv i64 %265, %251
  %267 = load i64, ptr %164, align 8
  %268 = add i64 %267, -1
  %269 = add i64 %268, %266
  %270 = sdiv i64 %269, %266
  %271 = shl nsw i64 %264, 3
  %272 = call i64 @llvm.smin.i64(i64 %270, i64 %271)
  %273 = call i64 @llvm.smax.i64(i64 %272, i64 1)
  %274 = add i64 %273, %268
  %275 = sdiv i64 %274, %273
  %276 = getelementptr inbounds nuw i8, ptr %152, i64 32
  store i64 %275, ptr %276, align 8
  %277 = icmp eq i64 %275, 0
  br i1 %277, label %281, label %278

278:
  %279 = add i64 %275, %268
  %280 = sdiv i64 %279, %275
  br label %281

281:
  %282 = phi i64 [ %280, %278 ], [ 0, %249 ]
  %283 = getelementptr inbounds nuw i8, ptr %152, i64 24
  store i64 %282, ptr %283, align 8
  %284 = call i64 @llvm.smin.i64(i64 %264, i64 %282)
  %285 = call i64 @llvm.smax.i64(i64 %284, i64 1)
  store atomic i64 0, ptr %152 seq_cst, align 8
  %286 = getelementptr inbounds nuw i8, ptr %152, i64 8
  store atomic i64 0, ptr %286 seq_cst, align 8
  %287 = getelementptr inbounds nuw i8, ptr %152, i64 16
  store atomic i64 %285, ptr %287 seq_cst, align 8
  %288 = icmp sgt i64 %284, 1
  br i1 %288, label %289, label %295

289:
  %290 = getelementptr inbounds nuw i8, ptr %7, i64 8
  %291 = getelementptr inbounds nuw i8, ptr %7, i64 16
  %292 = getelementptr inbounds nuw i8, ptr %7, i64 24
  %293 = getelementptr inbounds nuw i8, ptr %7, i64 32
  %294 = add nsw i64 %285, -2
  br label %299

295:
  call fastcc void @work(ptr noundef nonnull %152)
  %296 = load atomic i64, ptr %286 acquire, align 8
  %297 = load i64, ptr %283, align 8
  %298 = icmp slt i64 %296, %297
  br i1 %298, label %314, label %318

299:
  %300 = phi i64 [ 0, %289 ], [ %312, %311 ]
  store i64 40, ptr %7, align 8
  store ptr null, ptr %290, align 8
  %301 = load ptr, ptr %254, align 8
  store ptr %301, ptr %291, align 8
  store ptr @helper, ptr %292, align 8
  store ptr %152, ptr %293, align 8
  %302 = load ptr, ptr %257, align 8
  %303 = getelementptr inbounds nuw i8, ptr %302, i64 136
  %304 = load ptr, ptr %303, align 8
  %305 = call ptr %304(ptr noundef nonnull %7)
  %306 = icmp eq ptr %305, null
  br i1 %306, label %311, label %307

307:
  %308 = atomicrmw sub ptr %287, i64 1 acq_rel, align 8
  %309 = icmp eq i64 %308, 1
  br i1 %309, label %310, label %311

310:
  call void @free(ptr noundef nonnull %152)
  br label %311

311:
  %312 = add nuw nsw i64 %300, 1
  %313 = icmp eq i64 %300, %294
  br i1 %313, label %295, label %299

314:
  call void @adam_tx_wait()
  %315 = load atomic i64, ptr %286 acquire, align 8
  %316 = load i64, ptr %283, align 8
  %317 = icmp slt i64 %315, %316
  br i1 %317, label %314, label %318

318:
  %319 = atomicrmw sub ptr %287, i64 1 acq_rel, align 8
  %320 = icmp eq i64 %319, 1
  br i1 %320, label %321, label %322

321:
  call void @free(ptr noundef nonnull %152)
  br label %322

322:
  %323 = phi ptr [ null, %15 ], [ null, %20 ], [ %145, %135 ], [ %248, %239 ], [ null, %318 ], [ null, %321 ]
  ret ptr %323
}

define internal void @helper(ptr noundef %0) {
  tail call fastcc void @work(ptr noundef %0)
  %2 = getelementptr inbounds nuw i8, ptr %0, i64 16
  %3 = atomicrmw sub ptr %2, i64 1 acq_rel, align 8
  %4 = icmp eq i64 %3, 1
  br i1 %4, label %5, label %6

5:
  tail call void @free(ptr noundef %0)
  br label %6

6:
  ret void
}

define internal fastcc void @work(ptr noundef %0) unnamed_addr {
  %2 = getelementptr inbounds nuw i8, ptr %0, i64 24
  %3 = atomicrmw add ptr %0, i64 1 monotonic, align 8
  %4 = load i64, ptr %2, align 8
  %5 = icmp slt i64 %3, %4
  br i1 %5, label %6, label %58

6:
  %7 = getelementptr inbounds nuw i8, ptr %0, i64 32
  %8 = getelementptr inbounds nuw i8, ptr %0, i64 48
  %9 = getelementptr inbounds nuw i8, ptr %0, i64 72
  %10 = getelementptr inbounds nuw i8, ptr %0, i64 56
  %11 = getelementptr inbounds nuw i8, ptr %0, i64 64
  %12 = getelementptr inbounds nuw i8, ptr %0, i64 8
  br label %13

13:
  %14 = phi i64 [ %3, %6 ], [ %55, %53 ]
  %15 = load i64, ptr %7, align 8
  %16 = mul nsw i64 %15, %14
  %17 = add nsw i64 %16, %15
  %18 = load i64, ptr %8, align 8
  %19 = icmp sgt i64 %18, 0
  %20 = icmp sgt i64 %17, 0
  %21 = select i1 %19, i1 %20, i1 false
  br i1 %21, label %22, label %53

22:
  %23 = phi i64 [ %46, %45 ], [ %18, %13 ]
  %24 = phi i64 [ %48, %45 ], [ 0, %13 ]
  %25 = phi i64 [ %49, %45 ], [ 0, %13 ]
  %26 = getelementptr inbounds nuw %struct.Leaf, ptr %9, i64 %25
  %27 = icmp sgt i64 %16, %24
  %28 = sub nsw i64 %16, %24
  %29 = select i1 %27, i64 %28, i64 0
  %30 = sub nsw i64 %17, %24
  %31 = getelementptr inbounds nuw i8, ptr %26, i64 24
  %32 = load i64, ptr %31, align 8
  %33 = tail call i64 @llvm.smin.i64(i64 %30, i64 %32)
  %34 = icmp slt i64 %29, %33
  br i1 %34, label %35, label %45

35:
  %36 = load ptr, ptr %10, align 8
  %37 = load ptr, ptr %26, align 8
  %38 = load ptr, ptr %11, align 8
  %39 = getelementptr inbounds nuw i8, ptr %26, i64 8
  %40 = load i32, ptr %39, align 8
  %41 = getelementptr inbounds nuw i8, ptr %26, i64 16
  %42 = load i64, ptr %41, align 8
  tail call void %36(ptr noundef %37, ptr noundef %38, i32 noundef %40, i64 noundef %42, i64 noundef %29, i64 noundef %33)
  %43 = load i64, ptr %31, align 8
  %44 = load i64, ptr %8, align 8
  br label %45

45:
  %46 = phi i64 [ %44, %35 ], [ %23, %22 ]
  %47 = phi i64 [ %43, %35 ], [ %32, %22 ]
  %48 = add nsw i64 %47, %24
  %49 = add nuw nsw i64 %25, 1
  %50 = icmp slt i64 %49, %46
  %51 = icmp slt i64 %48, %17
  %52 = select i1 %50, i1 %51, i1 false
  br i1 %52, label %22, label %53

53:
  %54 = atomicrmw add ptr %12, i64 1 release, align 8
  %55 = atomicrmw add ptr %0, i64 1 monotonic, align 8
  %56 = load i64, ptr %2, align 8
  %57 = icmp slt i64 %55, %56
  br i1 %57, label %13, label %58

58:
  ret void
}

define internal fastcc i32 @fits(ptr noundef readonly %0, i64 noundef %1, ptr noundef readonly %2, ptr noundef readonly %3) unnamed_addr {
  %5 = getelementptr inbounds nuw i8, ptr %0, i64 48
  %6 = load ptr, ptr %5, align 8
  %7 = getelementptr inbounds i8, ptr %6, i64 %1
  %8 = load i8, ptr %7, align 1
  %9 = icmp eq i8 %8, 0
  br i1 %9, label %10, label %25

10:
  %11 = getelementptr inbounds nuw i8, ptr %3, i64 32
  %12 = load i64, ptr %11, align 8
  %13 = icmp sgt i64 %12, 0
  br i1 %13, label %14, label %27

14:
  %15 = getelementptr inbounds nuw i8, ptr %3, i64 40
  %16 = load ptr, ptr %15, align 8
  br label %17

17:
  %18 = phi i64 [ 0, %14 ], [ %23, %17 ]
  %19 = phi i64 [ 1, %14 ], [ %22, %17 ]
  %20 = getelementptr inbounds nuw i64, ptr %16, i64 %18
  %21 = load i64, ptr %20, align 8
  %22 = mul nsw i64 %21, %19
  %23 = add nuw nsw i64 %18, 1
  %24 = icmp eq i64 %23, %12
  br i1 %24, label %27, label %17

25:
  %26 = tail call fastcc i64 @tiles_of(ptr noundef nonnull %0, ptr noundef %3)
  br label %27

27:
  %28 = phi i64 [ %26, %25 ], [ 1, %10 ], [ %22, %17 ]
  %29 = getelementptr inbounds nuw i8, ptr %2, i64 16
  %30 = load i32, ptr %29, align 8
  %31 = getelementptr inbounds nuw i8, ptr %0, i64 56
  %32 = load ptr, ptr %31, align 8
  %33 = getelementptr inbounds i8, ptr %32, i64 %1
  %34 = load i8, ptr %33, align 1
  %35 = zext i8 %34 to i32
  %36 = icmp eq i32 %30, %35
  br i1 %36, label %37, label %56

37:
  %38 = getelementptr inbounds nuw i8, ptr %2, i64 32
  %39 = load i64, ptr %38, align 8
  %40 = icmp sgt i64 %39, 0
  br i1 %40, label %41, label %52

41:
  %42 = getelementptr inbounds nuw i8, ptr %2, i64 40
  %43 = load ptr, ptr %42, align 8
  br label %44

44:
  %45 = phi i64 [ 0, %41 ], [ %50, %44 ]
  %46 = phi i64 [ 1, %41 ], [ %49, %44 ]
  %47 = getelementptr inbounds nuw i64, ptr %43, i64 %45
  %48 = load i64, ptr %47, align 8
  %49 = mul nsw i64 %48, %46
  %50 = add nuw nsw i64 %45, 1
  %51 = icmp eq i64 %50, %39
  br i1 %51, label %52, label %44

52:
  %53 = phi i64 [ 1, %37 ], [ %49, %44 ]
  %54 = icmp eq i64 %53, %28
  %55 = zext i1 %54 to i32
  br label %56

56:
  %57 = phi i32 [ 0, %27 ], [ %55, %52 ]
  ret i32 %57
}

define internal fastcc i64 @tiles_of(ptr noundef readonly %0, ptr noundef readonly %1) unnamed_addr {
  %3 = getelementptr inbounds nuw i8, ptr %0, i64 40
  %4 = load i64, ptr %3, align 8
  %5 = icmp eq i64 %4, 0
  %6 = getelementptr inbounds nuw i8, ptr %1, i64 32
  %7 = load i64, ptr %6, align 8
  br i1 %5, label %16, label %8

8:
  %9 = icmp eq i64 %7, 0
  br i1 %9, label %43, label %10

10:
  %11 = getelementptr inbounds nuw i8, ptr %1, i64 40
  %12 = load ptr, ptr %11, align 8
  %13 = getelementptr i64, ptr %12, i64 %7
  %14 = getelementptr i8, ptr %13, i64 -8
  %15 = load i64, ptr %14, align 8
  br label %29

16:
  %17 = icmp sgt i64 %7, 0
  br i1 %17, label %18, label %43

18:
  %19 = getelementptr inbounds nuw i8, ptr %1, i64 40
  %20 = load ptr, ptr %19, align 8
  br label %21

21:
  %22 = phi i64 [ 0, %18 ], [ %27, %21 ]
  %23 = phi i64 [ 1, %18 ], [ %26, %21 ]
  %24 = getelementptr inbounds nuw i64, ptr %20, i64 %22
  %25 = load i64, ptr %24, align 8
  %26 = mul nsw i64 %25, %23
  %27 = add nuw nsw i64 %22, 1
  %28 = icmp eq i64 %27, %7
  br i1 %28, label %29, label %21

29:
  %30 = phi ptr [ %12, %10 ], [ %20, %21 ]
  %31 = phi i64 [ %15, %10 ], [ %26, %21 ]
  %32 = icmp eq i64 %31, 0
  br i1 %32, label %53, label %33

33:
  %34 = icmp sgt i64 %7, 0
  br i1 %34, label %35, label %43

35:
  %36 = phi i64 [ %41, %35 ], [ 0, %33 ]
  %37 = phi i64 [ %40, %35 ], [ 1, %33 ]
  %38 = getelementptr inbounds nuw i64, ptr %30, i64 %36
  %39 = load i64, ptr %38, align 8
  %40 = mul nsw i64 %39, %37
  %41 = add nuw nsw i64 %36, 1
  %42 = icmp eq i64 %41, %7
  br i1 %42, label %43, label %35

43:
  %44 = phi i64 [ %31, %33 ], [ 1, %16 ], [ 1, %8 ], [ %31, %35 ]
  %45 = phi i64 [ 1, %33 ], [ 1, %16 ], [ 1, %8 ], [ %40, %35 ]
  %46 = sdiv i64 %45, %44
  %47 = getelementptr inbounds nuw i8, ptr %0, i64 32
  %48 = load i64, ptr %47, align 8
  %49 = add i64 %44, -1
  %50 = add i64 %49, %48
  %51 = sdiv i64 %50, %48
  %52 = mul nsw i64 %51, %46
  br label %53

53:
  %54 = phi i64 [ %52, %43 ], [ 0, %29 ]
  ret i64 %54
}

declare noalias noundef ptr @malloc(i64 noundef) local_unnamed_addr

declare void @free(ptr allocptr noundef) local_unnamed_addr

declare i64 @llvm.smax.i64(i64, i64)

declare i64 @llvm.smin.i64(i64, i64)
